"""How figures look, and how they are written: one style for all of them."""

import csv
import hashlib
import io
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from t5scaling import storage
from t5scaling.analysis.results.places import Place
from t5scaling.analysis.results.roles import (
    BALANCED,
    MIXED,
    OTHER,
    SOURCE,
    TARGET,
    UNRELATED,
    Roles,
)
from t5scaling.analysis.wording import short_size

PNG_DPI = 160
# Okabe and Ito's palette, for colour-blind readers too; markers differ for black and white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# One family of colours for each role of pretraining data, in all figures, and the darker shade in
# which text of that colour can be read on white.
ROLE_COLOURS = {
    BALANCED: ("#0072B2",),
    TARGET: ("#009E73",),
    SOURCE: ("#D55E00",),
    UNRELATED: ("#CC79A7", "#7A3B62"),
    MIXED: ("#E69F00", "#56B4E9"),
    OTHER: COLOURS,
}
TEXT_COLOURS = {
    "#0072B2": "#00609A", "#009E73": "#00704F", "#D55E00": "#B04500", "#CC79A7": "#A04678",
    "#E69F00": "#8A5F00", "#56B4E9": "#1D6C9C", "#7A3B62": "#7A3B62",
}  # fmt: skip
# One more than colours, so that the first 42 curves of a figure have different pairs of both.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# Any: the names of matplotlib's settings are a type of its stubs alone.
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "t5scaling",
    "path.simplify": False,
    "text.parse_math": False,  # a $ in a name is a $
}
LONGEST_STEM = 150  # characters; file systems take names of 255 bytes


def role_colour(roles: Roles, place: Place) -> str:
    """The colour of a place's pretraining data."""
    family = ROLE_COLOURS[roles.kind(place)]
    return family[roles.rank(place) % len(family)]


def look(curves: int) -> list[tuple[str, str]]:
    """(colour, marker) of each curve of a figure: different for up to 42."""
    return [(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i in range(curves)]


def size_axis(axes: Axes, sizes: Sequence[float]) -> None:
    """Labels the measured sizes themselves, or powers of ten where few of them have room.

    sizes: sorted. A label that would touch the one before it is left out.
    """
    low, high = min(sizes) / 1.15, max(sizes) * 1.15
    room = math.log(high / low) / 9  # of one label on an axis as wide as ours are
    apart: list[float] = []
    for size in sizes:
        if not apart or math.log(size / apart[-1]) >= room:
            apart.append(size)
    decades = math.log10(high / low)
    if 1 < len(apart) <= 7 and (2 * len(apart) > len(sizes) or decades < 2):
        axes.set_xticks(apart)
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(LogLocator(numticks=8))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_size(value)))
    axes.set_xlim(low, high)


def stem_of(folder: Path, parts: Sequence[object], taken: dict[str, str]) -> Path:
    """Where a figure on these goes, without an ending: a name that every file system takes.

    taken: names that figures beside it have, and of what they are, to which this one's is added.
    A digest is added where a name had to be shortened or lost characters, so that names differ.
    """
    whole = "--".join(map(str, parts))
    name = re.sub(r"[^A-Za-z0-9_.=-]+", "-", whole)
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    if len(name) > LONGEST_STEM:
        name = f"{name[:LONGEST_STEM]}-{digest}"
    if taken.setdefault(name, whole) != whole:
        name = f"{name}-{digest}"
    return folder / name


def save(page: Figure, stem: Path) -> None:
    """Writes stem.png and stem.svg; the same page gives the same bytes."""
    # By the canvases themselves, each of which lays the page out as it draws it: `savefig` draws
    # every page twice, the first time for its layout alone.
    with matplotlib.rc_context(STYLE):
        dpi, png, svg = page.dpi, io.BytesIO(), io.StringIO()
        try:
            page.set_dpi(PNG_DPI)
            FigureCanvasAgg(page).print_png(png, metadata={"Software": None})
            page.set_dpi(dpi)
            FigureCanvasSVG(page).print_svg(svg, metadata={"Date": None, "Creator": None})
        finally:
            page.set_dpi(dpi)  # print_svg leaves its own
    _write(stem, "png", png.getvalue())
    _write(stem, "svg", _shorter_paths(svg.getvalue()).encode())


def _shorter_paths(svg: str) -> str:
    """Coordinates of paths to a tenth of a point: nobody sees more, and a page holds many."""

    def rounded(path: re.Match) -> str:
        return re.sub(
            r"-?\d+\.\d+", lambda n: f"{float(n.group()):.1f}".removesuffix(".0"), path.group()
        )

    return re.sub(r'\bd="[^"]*"', rounded, svg)


def save_rows(rows: Iterable[Sequence], stem: Path) -> None:
    """Writes the numbers behind a figure as stem.csv; the first row is the header."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    for row in rows:
        table.writerow([f"{v:.10g}" if isinstance(v, float) else v for v in row])
    _write(stem, "csv", text.getvalue().encode())


def _write(stem: Path, ending: str, content: bytes) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    storage.write(stem.with_name(f"{stem.name}.{ending}"), content)
