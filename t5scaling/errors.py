"""One error for every user's mistake: what, where, what was expected, the nearest choice."""

import difflib
from collections.abc import Iterable


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


def first_line(error: BaseException, longest: int = 200) -> str:
    """The first line of an error's text that is not empty, else the name of its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:longest]
