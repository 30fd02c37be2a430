#!/usr/bin/env python3
"""The command `t5scaling` from a clone: `python run.py VERB --help` explains each verb."""

import sys

from t5scaling import command_line


def main(argv: list[str]) -> int:
    return command_line.main(argv, program="run.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
