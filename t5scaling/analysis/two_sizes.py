"""`run.py advise` and `run.py figures` of a table whose x is two columns.

How the advice is decided: `conclusions.joint`. `advise --json` prints {"schema", "software",
"level", "joint": [...]}: for each curve its place, metric, x and x2 (names of columns), law, note
(why it has none, else ""), held_out_rms_log_error, dearest (the measured point with the largest
product), doublings (size, and by how much twice of it changes the value: value, low, high),
forecast and optimum (as `predict --json` has predictions and optima), next_run (place; before
and after: half widths of the interval of a log value) and sentences.
"""

import contextlib
import json
import os

from rich.console import Console

from t5scaling import storage
from t5scaling.analysis.conclusions.curve_fit import fit_one
from t5scaling.analysis.conclusions.findings import versioned
from t5scaling.analysis.conclusions.frontier import check
from t5scaling.analysis.conclusions.joint import JointAdvice, advise_joint
from t5scaling.analysis.conclusions.named_law import check_name, lower_is_better
from t5scaling.analysis.predict import law_of_one
from t5scaling.analysis.presentation.figures import StudyFigure, print_json
from t5scaling.analysis.presentation.joint import record, show_joint
from t5scaling.analysis.presentation.one_law import draw_joint
from t5scaling.analysis.presentation.terminal import console
from t5scaling.analysis.results.load import Columns, load_curves
from t5scaling.errors import UserError


def advise(
    path: str | os.PathLike,
    columns: Columns,
    *,
    at: tuple[float, ...] | None = None,
    compute: float | None = None,
    law: str | None = None,
    bounds: str | None = None,
    as_json: bool = False,
    screen: Console | None = None,
) -> list[JointAdvice]:
    """Prints the advice on each curve of a table of two sizes, and returns it.

    Args:
      at: the place asked for; None: 4 times the largest measured of each size.
      compute: operations to split between both sizes; None: what the place costs, for laws of N
        and D.
      law, bounds: as for `fit_table`; None: its choice, and with a budget the Chinchilla law.

    Raises:
      UserError: see `load` and `advise_joint`; or no curve that can be fitted.
    """
    _check(law, bounds)
    found = []
    for curve in load_curves(path, columns):
        chosen, _ = law_of_one(curve, law, bounds, budget=compute is not None)
        if compute is not None:
            check(chosen)
        found.append(advise_joint(curve, chosen, at=at, compute=compute))
    if all(advice.curve_fit.fit is None for advice in found):
        raise UserError(f"{path}: {found[0].curve_fit.note}")
    if as_json:
        print(json.dumps(versioned({"joint": [record(advice) for advice in found]}), indent=1,
                         ensure_ascii=False))  # fmt: skip
    else:
        for advice in found:
            show_joint(advice, screen or console())
    return found


def draw(
    path: str | os.PathLike,
    columns: Columns,
    *,
    output: str | os.PathLike | None = None,
    law: str | None = None,
    bounds: str | None = None,
    as_json: bool = False,
) -> list[StudyFigure]:
    """Draws the law of each curve over its two sizes, for laws of N and D with the best split of
    each budget, as PNG, SVG and CSV, and lists the figures.

    Args:
      output: folder; None: `figures` in the current one. law, bounds: as for `fit_table`.
      as_json: list them, and what could not be drawn, as JSON.

    Raises:
      UserError: see `load`; or no curve that can be fitted.
    """
    _check(law, bounds)
    folder = storage.path(output or "figures")
    fits = []
    for curve in load_curves(path, columns):
        chosen, _ = law_of_one(curve, law, bounds, budget=False)
        fits.append(
            fit_one(curve, chosen, lower_is_better=lower_is_better(curve, chosen), hold_out=0)
        )
    if all(one.fit is None for one in fits):
        raise UserError(f"{path}: {fits[0].note}")
    taken: dict[str, str] = {}
    with contextlib.closing(storage.Folder(folder)) as drawn:
        figures = [draw_joint(one, drawn.local, taken) for one in fits]
    shown = [figure for figure in figures if figure is not None]
    failed = [f"not drawn: {one.curve.label}: {one.note}" for one in fits if one.fit is None]
    if as_json:
        print_json(shown, folder, failed)
        return shown
    screen = console()
    for figure in shown:
        screen.print(f"{folder / figure.stem.name}.png  {figure.title}", soft_wrap=True)
    for line in failed:
        screen.print(line, soft_wrap=True)
    count = "1 figure" if len(shown) == 1 else f"{len(shown)} figures, each"
    screen.print(f"{count} as .png, .svg and .csv, in {folder}")
    return shown


def _check(law: str | None, bounds: str | None) -> None:
    check_name(law, bounds)
    if law == "all":
        raise UserError("expected one law; `run.py fit --law=all` says which predicts best")
