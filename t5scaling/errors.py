"""One error for every user's mistake: what, where, what was expected, the nearest choice."""

import difflib
import errno
import os
import sysconfig
import traceback
from collections.abc import Iterable

# What a folder, a disk or a name lets nobody do: no mistake of the program's.
_OF_FILES = frozenset(
    (
        errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
        errno.ELOOP, errno.ENOSPC, errno.EDQUOT, errno.EEXIST,
    )
)  # fmt: skip


class UserError(Exception):
    """A mistake that the user can mend. `run.py` prints it as one line and exits with status 2."""


class Stopped(Exception):
    """A signal arrived and the work so far is saved: the same command continues it."""

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.signal_number = signal_number


def in_one_line(error: BaseException) -> str:
    """What went wrong in somebody else's code, and where: "KeyError: 'en' (my_tasks.py, line 7)".

    The place is the innermost one outside installed packages.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # TensorFlow's messages begin with the place and end with what went wrong.
    reason = lines[-1] if lines and lines[0] == "in user code:" else "".join(lines[:1])
    text = f"{type(error).__name__}: {reason[:300]}" if reason else type(error).__name__
    if isinstance(error, SyntaxError):
        return f"{text.partition(' (')[0]} ({error.filename}, line {error.lineno})"
    installed = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib"))
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(installed) and f.filename[0] != "<"]
    return f"{text} ({own[-1].filename}, line {own[-1].lineno})" if own else text


def shortage(error: BaseException) -> str | None:
    """One line if the error was caused by a full disk or too little memory; else None."""
    seen: set[int] = set()
    behind: BaseException | None = error
    while behind is not None and id(behind) not in seen:
        seen.add(id(behind))
        text = str(behind)
        number = getattr(behind, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in text:
            where = getattr(behind, "filename", None)
            return f"no space is left on the disk{f' for {where}' if where else ''}"
        if "RESOURCE_EXHAUSTED" in text:
            return (
                "the device's memory does not suffice "
                f"({text[text.index('RESOURCE_EXHAUSTED') :].splitlines()[0][:200]}); a smaller "
                "batch, MICROBATCHES or REMAT_POLICY need less, and run.py plan says how much"
            )
        if isinstance(behind, MemoryError) or number == errno.ENOMEM:
            return "this machine's memory does not suffice; smaller batches or lengths need less"
        behind = behind.__cause__ or behind.__context__
    return None


def nearest(name: str, choices: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` for the choice closest to `name`, or the choices if none is."""
    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    if not choices:
        return ""
    shown = ", ".join(choices[:12]) + (", ..." if len(choices) > 12 else "")
    return f"; expected one of: {shown}"


def first_line(message: object, longest: int = 200) -> str:
    """The first line of a text or of an error's message, as one can show it; "no reason given" if
    it has none."""
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    if not lines:
        return type(message).__name__ if isinstance(message, BaseException) else "no reason given"
    return "".join(c if c.isprintable() else " " for c in lines[0][:longest])


def file_mistake(error: OSError) -> UserError | None:
    """The error as a user's mistake, such as a missing permission; None if it may be a mistake of
    the program."""
    if error.errno not in _OF_FILES or error.filename is None:
        return None
    return UserError(f"{os.fsdecode(error.filename)}: {os.strerror(error.errno)}")
