"""From what a page shows to HTML: Jinja2 templates, in which every text is escaped.

Views hand plain texts, tables and badges to a template of this package's `templates`; nothing else
in the project writes HTML. Names of tasks, columns and data, values and errors are shown as text,
whatever they contain.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from t5scaling.analysis.conclusions.shapes import Verdict


@dataclass(frozen=True)
class Badge:
    """A word with a background of its own: kind is a class of page.css, word the one beside it."""

    kind: str
    text: str

    @property
    def css(self) -> str:
        return f"{self.kind} {self.text.replace(' ', '-')}"


@dataclass(frozen=True)
class Range:
    """An interval drawn as a line with a dot at its value, in pixels from the left of WIDTH; zero
    is a thin line. The numbers must be beside it."""

    value: float
    low: float
    high: float
    zero: float

    WIDTH = 110

    @classmethod
    def of(
        cls, left: float, right: float, value: float | None, low: float | None, high: float | None
    ) -> "Range | str":
        """On a scale from left to right; "" for what has no interval."""
        if value is None or low is None or high is None or not left < right:
            return ""

        def place(number: float) -> float:
            return round(4 + (cls.WIDTH - 8) * (number - left) / (right - left), 1)

        return cls(place(value), place(low), place(high), place(0.0))


@dataclass(frozen=True)
class Table:
    """A table that scrolls sideways on its own. numbers, wrap: columns that are aligned right, and
    that may break their lines. marks: rows that are shaded."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | int | Badge | Range]]
    numbers: Iterable[int] = ()
    wrap: Iterable[int] = ()
    marks: Sequence[bool] = ()

    def css(self, column: int) -> str:
        """The class of a column's cells; "" for none."""
        return "number" if column in self.numbers else "wrap" if column in self.wrap else ""

    def marked(self, row: int) -> bool:
        return row < len(self.marks) and self.marks[row]


def shape_badge(verdict: Verdict) -> Badge:
    """The shape of a curve."""
    return Badge("word", verdict.word)


_ENVIRONMENT = Environment(
    loader=PackageLoader("t5scaling.analysis.presentation.html"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **values: object) -> Markup:
    """The HTML of a template of this package."""
    return Markup(_ENVIRONMENT.get_template(template).render(**values).strip())


def style() -> Markup:
    """The content of page.css, which the page carries with it."""
    return Markup(
        resources.files("t5scaling.analysis.presentation.html")
        .joinpath("page.css")
        .read_text(encoding="utf-8")
    )
