"""What a verb of the command line is, and the arguments that many of them share.

An action takes its arguments by their names and imports what it needs itself, so that a verb loads
nothing of the others. It returns the exit status, None for 0.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any


class Argument:
    """An argument of a verb: `flag` as it is typed, "--x" or "file", with argparse's options.

    One that is optional is None where it is not given, unless the options say otherwise.
    """

    def __init__(self, flag: str, help: str, **options: Any):
        self.flag, self.options = flag, {"help": help, **options}

    @property
    def name(self) -> str:
        """Of the action's parameter."""
        return self.options.get("dest") or self.flag.lstrip("-")


@dataclasses.dataclass(frozen=True)
class Verb:
    """One call of the library.

    Attributes:
        summary: what it does, in a sentence or two.
        example: arguments of a call.
        action: does it.
        arguments: the action's, beside those of gin and of jobs.
        needs: the extra of the package whose requirements it imports, "" for the main ones.
        gin: whether gin files and settings (--gin_file, --gin.NAME=value) say what to do; the
            action then gets `gin_files`, and `settings`: name -> value as typed.
        job: whether several processes may do it together; the action then gets `job`, a context
            in which this one is part of them.
    """

    summary: str
    example: str
    action: Callable[..., int | None]
    arguments: Sequence[Argument] = ()
    needs: str = ""
    gin: bool = False
    job: bool = False

    def call(self, given: Mapping[str, Any], settings: Mapping[str, str]) -> int:
        """Does it. `given`: the arguments, with those of `GIN` and `JOB`."""
        arguments = {argument.name: given[argument.name] for argument in self.arguments}
        if self.gin or self.job:
            from t5scaling import compilation

            compilation.prepare()  # before anything imports JAX
        if self.gin:
            arguments |= {"gin_files": given["gin_file"], "settings": settings}
        if self.job:
            from t5scaling.training import distributed

            arguments["job"] = distributed.job(*(given[argument.name] for argument in JOB))
        return self.action(**arguments) or 0


GIN = (
    Argument("--gin_file", "may be repeated", action="append", default=[]),
    Argument("--gin.NAME", "sets one gin parameter", metavar="VALUE"),
)
JOB = (
    Argument("--coordinator", "address of process 0", metavar="HOST:PORT"),
    Argument("--num_processes", "the number of processes", type=int, metavar="N"),
    Argument("--process_id", "the number of this process, from 0", type=int, metavar="I"),
)
