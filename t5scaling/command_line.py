"""The command line: `t5scaling VERB ...`, or `python run.py VERB ...` in a clone."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from t5scaling.verb import GIN, JOB, Argument, Verb
from t5scaling.verbs import VERBS

DESCRIPTION = """t5scaling: from text to a trustworthy scaling law for transfer learning.

Each verb is one call of the library; `{program} VERB --help` explains it with an example.
"""


def parser(program: str) -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog=program, description=DESCRIPTION.format(program=program))
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    start = "python run.py" if program == "run.py" else program
    for name, verb in VERBS.items():
        example = f"Example: {start} {name} {verb.example}".rstrip()
        sub = verbs.add_parser(name, help=verb.summary, description=verb.summary, epilog=example)
        _add(sub, (*verb.arguments, *(GIN if verb.gin else ())))
        if verb.job:
            group = sub.add_argument_group(
                "several processes",
                "Slurm and Cloud TPU set these by themselves; elsewhere give all three:",
            )
            _add(group, JOB)
    return top


def _add(parser: Any, arguments: Sequence[Argument]) -> None:
    for argument in arguments:
        parser.add_argument(argument.flag, **argument.options)


def main(argv: Sequence[str] | None = None, program: str = "t5scaling") -> int:
    """Runs the verb of `argv`, by default the arguments of the process, and returns the exit
    status: 0; 1 if the answer of a verb is no; 2 for a user's mistake, which is one line on stderr;
    128 plus the number of a signal."""
    from t5scaling.errors import Stopped, UserError, file_mistake, shortage

    argv = sys.argv[1:] if argv is None else argv
    settings = dict(a[6:].split("=", 1) for a in argv if a.startswith("--gin.") and "=" in a)
    rest = [a for a in argv if not (a.startswith("--gin.") and "=" in a)]
    given = vars(parser(program).parse_args(rest))
    name = given["verb"]
    verb = VERBS[name]
    try:
        if settings and not verb.gin:
            listed = " ".join(f"--gin.{setting}" for setting in settings)
            raise UserError(f"{name} takes no --gin settings, but {listed} is given; leave it out")
        return verb.call({key: _with_home(value) for key, value in given.items()}, settings)
    except UserError as error:
        return _refuse(error)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signal_number
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # who read it has gone, and Python would say so at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except ModuleNotFoundError as error:
        if not (lacking := _lacking(name, verb, error)):
            raise
        return _refuse(lacking)
    except Exception as error:
        mistake = file_mistake(error) if isinstance(error, OSError) else None
        if mistake:  # a folder that may not be read, a file in a folder's place, ...
            return _refuse(mistake)
        reason = shortage(error)
        if reason is None:
            raise
        _refuse(reason)
        return 1


def _refuse(reason: object) -> int:
    print(f"error: {reason}", file=sys.stderr)
    return 2


def _lacking(name: str, verb: Verb, error: ModuleNotFoundError) -> str:
    """What to install where packages that a verb needs are missing; "" if the missing module is one
    of this project's own."""
    module = (error.name or "").partition(".")[0]
    if not module or module in ("t5scaling", "tasks"):
        return ""
    extra = f"[{verb.needs}]" if verb.needs else ""
    return (
        f"{name} needs the Python package {module}, which is not installed here; install what it "
        f"needs: python -m pip install 't5scaling{extra}', in a clone --editable '.{extra}'"
    )


def _with_home(value: Any) -> Any:
    """Replaces a leading ~ by the home folder, as a shell does not after `--output=`."""
    if isinstance(value, list):
        return [_with_home(item) for item in value]
    if not isinstance(value, str) or not value.startswith("~"):
        return value
    from t5scaling import storage

    return storage.expanded(value)
