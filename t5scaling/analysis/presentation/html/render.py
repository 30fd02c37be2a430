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
class Table:
    """A table that scrolls sideways on its own. numbers, wrap: columns that are aligned right, and
    that may break their lines. marks: rows that are shaded."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | Badge]]
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
    return Markup(resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8"))
