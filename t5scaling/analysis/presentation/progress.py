"""How far long work is, on a terminal's stderr; nothing is written into a file or a pipe."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")
MANY = 8  # items; fewer are over before a bar would say much


def tracked(items: Iterable[Item], what: str, number: int) -> Iterable[Item]:
    """The items one by one, `number` of them, with a bar that is gone when they are over."""
    screen = Console(stderr=True)
    if number < MANY or not screen.is_terminal:
        return items
    return track(items, description=what, total=number, console=screen, transient=True)


def working(what: str) -> AbstractContextManager:
    """A sign of life while something is done of which nobody knows how far it is."""
    screen = Console(stderr=True)
    return screen.status(what) if screen.is_terminal else nullcontext()
