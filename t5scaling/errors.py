"""One error for every user's mistake: what, where, what was expected, the nearest choice."""

import difflib
import errno
import os
from collections.abc import Iterable

# What a folder, a disk or a name lets nobody do: no mistake of the program's.
_OF_FILES = frozenset(
    (
        errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
        errno.ELOOP, errno.ENOSPC, errno.EDQUOT,
    )
)  # fmt: skip


class UserError(Exception):
    """A mistake that the user can mend. `run.py` prints it as one line and exits with status 2."""


class Stopped(Exception):
    """A signal came and the work so far is saved: the same command goes on with it."""

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.signal_number = signal_number


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


def first_line(said: object, longest: int = 200) -> str:
    """The first line of a text or of an error's message, as one can show it; "no reason given" if
    it has none."""
    lines = [line.strip() for line in str(said).splitlines() if line.strip()]
    if not lines:
        return type(said).__name__ if isinstance(said, BaseException) else "no reason given"
    return "".join(c if c.isprintable() else " " for c in lines[0][:longest])


def of_files(error: OSError) -> UserError | None:
    """The user's mistake that an error of the file system is; None if it may be the program's."""
    if error.errno not in _OF_FILES or error.filename is None:
        return None
    return UserError(f"{os.fsdecode(error.filename)}: {os.strerror(error.errno)}")
