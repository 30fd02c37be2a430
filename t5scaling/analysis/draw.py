"""`run.py figures`: every figure that a table or a study has content for."""

import contextlib
import os
from collections.abc import Sequence

from rich.console import Console

from t5scaling import storage
from t5scaling.analysis.conclusions.advice import advise_curves
from t5scaling.analysis.conclusions.many_curves import fit_all
from t5scaling.analysis.conclusions.named_law import check_name, laws_of, lower_is_better
from t5scaling.analysis.presentation.advice_figures import draw_advice
from t5scaling.analysis.presentation.figures import StudyFigure, draw_all, print_json
from t5scaling.analysis.presentation.one_law import draw_joint
from t5scaling.analysis.presentation.progress import tracked
from t5scaling.analysis.presentation.sources import draw_sources
from t5scaling.analysis.presentation.terminal import console
from t5scaling.analysis.results.harvest import runs_of
from t5scaling.analysis.results.load import EVERYTHING, Columns, load_curves, warn_and_keep
from t5scaling.errors import UserError


def draw(
    path: str | os.PathLike,
    columns: Columns = EVERYTHING,
    *,
    output: str | os.PathLike | None = None,
    at: float | None = None,
    law: str | None = None,
    bounds: str | None = None,
    as_json: bool = False,
) -> list[StudyFigure]:
    """Draws the figures of `path` (see `load`) as PNG, SVG and CSV, and lists them.

    Args:
      output: folder; None: `figures` in the current one.
      at: the size that advice is asked for; None: as `advise`.
      law, bounds: what the curves are drawn with, as for `fit_table`; None: the paper's laws.
      as_json: list them as JSON.

    Raises:
      UserError: see `load`; a law that the columns do not go with; or no curve with a law, where x
        is two columns or several sources.
    """
    check_name(law, bounds, columns.sources)
    if law == "all":
        raise UserError("figures takes one law; `run.py fit --law=all` says which predicts best")
    if len(columns.x) == 2 or columns.sources:
        if at is not None:
            raise UserError("--at is for figures of one size")
        return _draw_laws(path, columns, output, law, bounds, as_json)
    folder = storage.path(output or "figures")
    warnings: list[str] = []
    curves = [
        curve for curve in load_curves(path, columns, warn_and_keep(warnings)) if not curve.x2_name
    ]
    if not curves:
        raise UserError(f"{path}: figures are of curves of one size; name the second in --group")
    jobs = [
        (curve, one, {"lower_is_better": lower_is_better(curve, one)})
        for curve, one, _ in laws_of(law, curves, bounds=bounds)
    ]
    fits = list(tracked(fit_all(jobs), "curves", len(jobs)))
    # Before anything is drawn: a size that is out of reach leaves no figures behind.
    advice = advise_curves(curves, runs=runs_of(path), at=at, fitted=fits)
    with contextlib.closing(storage.Folder(folder)) as drawn:
        figures = draw_all(fits, drawn.local)
        if advice:
            figures += draw_advice(advice, drawn.local)
    if as_json:
        print_json(figures, folder, warnings)
        return figures
    _list(figures, folder, console())
    return figures


def _draw_laws(
    path: str | os.PathLike,
    columns: Columns,
    output: str | os.PathLike | None,
    law: str | None,
    bounds: str | None,
    as_json: bool,
) -> list[StudyFigure]:
    """The law of each curve over its two sizes, for laws of N and D with the best split of each
    budget; or over the mixtures of its sources."""
    folder = storage.path(output or "figures")
    warnings: list[str] = []
    curves = load_curves(path, columns, warn_and_keep(warnings))
    jobs = [
        (curve, one, {"lower_is_better": lower_is_better(curve, one), "hold_out": 0})
        for curve, one, _ in laws_of(law, curves, bounds=bounds)
    ]
    fits = list(tracked(fit_all(jobs), "curves", len(jobs)))
    if all(one.fit is None for one in fits):
        raise UserError(f"{path}: {fits[0].note}")
    taken: dict[str, str] = {}
    draw_one = draw_sources if columns.sources else draw_joint
    with contextlib.closing(storage.Folder(folder)) as drawn:
        figures = [draw_one(one, drawn.local, taken) for one in fits]
    shown = [figure for figure in figures if figure is not None]
    failed = [f"not drawn: {one.curve.label}: {one.note}" for one in fits if one.fit is None]
    if as_json:
        print_json(shown, folder, [*warnings, *failed])
        return shown
    screen = console()
    _list(shown, folder, screen)
    for line in failed:
        screen.print(line, soft_wrap=True)
    return shown


def _list(figures: Sequence[StudyFigure], folder: storage.AnyPath, screen: Console) -> None:
    for figure in figures:
        screen.print(f"{folder / figure.stem.name}.png  {figure.title}", soft_wrap=True)
    count = "1 figure" if len(figures) == 1 else f"{len(figures)} figures, each"
    screen.print(f"{count} as .png, .svg and .csv, in {folder}")
