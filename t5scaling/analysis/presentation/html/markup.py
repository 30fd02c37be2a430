"""Pieces of HTML that several parts of the page are made of."""

from collections.abc import Iterable, Sequence
from html import escape

from t5scaling.analysis.conclusions.curve_fit import CurveFit


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Iterable[int] = (),
    wrap: Iterable[int] = (),
    marks: Sequence[bool] = (),
    html: bool = False,
) -> str:
    """A table that scrolls sideways on its own. html: cells are HTML; marks: shaded rows."""
    numbers, wrap = set(numbers), set(wrap)

    def css(i: int) -> str:
        return ' class="number"' if i in numbers else ' class="wrap"' if i in wrap else ""

    heads = "".join(f'<th scope="col"{css(i)}>{escape(h)}</th>' for i, h in enumerate(head))
    lines = [f"<tr>{heads}</tr>"]
    for place, row in enumerate(rows):
        mark = ' class="heldout"' if place < len(marks) and marks[place] else ""
        cells = "".join(
            f"<td{css(i)}>{cell if html else escape(cell)}</td>" for i, cell in enumerate(row)
        )
        lines.append(f"<tr{mark}>{cells}</tr>")
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="table"><table>'
        + "\n".join(lines)
        + "</table></div>"
    )


def bullets(items: Iterable[str]) -> str:
    """A list of plain texts; empty without items."""
    lines = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f"<ul>{lines}</ul>" if lines else ""


def folded(summary: str, html: str) -> str:
    """What a reader opens; empty if there is nothing inside."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>" if html else ""


def word(this: CurveFit) -> str:
    """A curve's verdict as a badge."""
    said = this.verdict.word
    return f'<span class="word {escape(said.replace(" ", "-"))}">{escape(said)}</span>'
