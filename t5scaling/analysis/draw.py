"""`run.py figures`: every figure that a table or a study has content for."""

import contextlib
import os

from t5scaling import storage
from t5scaling.analysis.conclusions.advice import advise_curves
from t5scaling.analysis.conclusions.choice_of_law import laws_for
from t5scaling.analysis.conclusions.many_curves import fit_all
from t5scaling.analysis.conclusions.named_law import check_name, lower_is_better, named_law
from t5scaling.analysis.presentation.advice_figures import draw_advice
from t5scaling.analysis.presentation.figures import StudyFigure, draw_all, print_json
from t5scaling.analysis.presentation.progress import tracked
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
      UserError: see `load`; or a table of two sizes (`two_sizes.draw`).
    """
    check_name(law, bounds)
    folder = storage.path(output or "figures")
    warnings: list[str] = []
    curves = [
        curve for curve in load_curves(path, columns, warn_and_keep(warnings)) if not curve.x2_name
    ]
    if not curves:
        raise UserError(f"{path}: figures are of curves of one size; name the second in --group")
    chosen = laws_for(curves)
    if law:
        chosen = [named_law(law, curve, bounds) for curve in curves]
    jobs = [
        (curve, one, {"lower_is_better": lower_is_better(curve, one)})
        for curve, one in zip(curves, chosen, strict=True)
    ]
    fits = list(tracked(fit_all(jobs), "curves", len(jobs)))
    with contextlib.closing(storage.Folder(folder)) as drawn:
        figures = draw_all(fits, drawn.local)
        advice = advise_curves(curves, runs=runs_of(path), at=at, fitted=fits)
        if advice:
            figures += draw_advice(advice, drawn.local)
    if as_json:
        print_json(figures, folder, warnings)
        return figures
    screen = console()
    for figure in figures:
        screen.print(f"{folder / figure.stem.name}.png  {figure.title}", soft_wrap=True)
    screen.print(f"{len(figures)} figures, each as .png, .svg and .csv, in {folder}")
    return figures
