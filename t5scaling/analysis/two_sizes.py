"""`run.py advise` of a table whose x is two columns.

How the advice is decided: `conclusions.joint`. `advise --json` prints {"schema", "software",
"level", "joint": [...]}: for each curve its place, metric, x and x2 (names of columns), law, note
(why it has none, else ""), held_out_rms_log_error, dearest (the measured point with the largest
product), doublings (size, and by how much twice of it changes the value: value, low, high),
forecast and optimum (as `predict --json` has predictions and optima), next_run (place; before
and after: half widths of the interval of a log value) and sentences.
"""

import json
import os

from rich.console import Console

from t5scaling.analysis.conclusions.findings import versioned
from t5scaling.analysis.conclusions.frontier import check
from t5scaling.analysis.conclusions.joint import JointAdvice, advise_joint
from t5scaling.analysis.conclusions.named_law import check_name
from t5scaling.analysis.predict import law_of_one
from t5scaling.analysis.presentation.joint import record, show_joint
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


def _check(law: str | None, bounds: str | None) -> None:
    check_name(law, bounds)
    if law == "all":
        raise UserError("expected one law; `run.py fit --law=all` says which predicts best")
