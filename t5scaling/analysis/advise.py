"""`run.py advise`: what the measurements say about paying for pretraining data.

How each part of it is decided: `conclusions.advice` and what that builds on.
"""

import json
import math
import os

from rich.console import Console

from t5scaling.analysis.conclusions.advice import Advice, advise_curves, advise_sources
from t5scaling.analysis.conclusions.findings import advice_record
from t5scaling.analysis.presentation.advice import show, show_many
from t5scaling.analysis.presentation.progress import working
from t5scaling.analysis.presentation.terminal import console
from t5scaling.analysis.results.harvest import runs_of
from t5scaling.analysis.results.load import EVERYTHING, Columns, load_curves, warn_and_keep
from t5scaling.errors import UserError

FEW = 12  # curves of which everything is written


def advise(
    path: str | os.PathLike,
    columns: Columns = EVERYTHING,
    *,
    at: float | None = None,
    cost_per_unit: float | None = None,
    cost_per_run: float | None = None,
    budget: float | None = None,
    as_json: bool = False,
    every: bool = False,
    screen: Console | None = None,
) -> Advice:
    """Prints the advice on the curves of `path` (see `load`) and returns it.

    Args:
      at: the size asked for; None: TARGET times the largest measured.
      cost_per_unit, cost_per_run: device-hours of pretraining per unit of x, and of one finetuning;
        None: from the timings of a study's runs; without timings a run costs 1, and pretraining
        as much again at the largest measured size.
      budget: device-hours for the next runs; None: what one run at the target costs.
      every: write of each curve in full, however many there are; else more than FEW are a table.

    Raises:
      UserError: see `load`; a target, cost or budget that is not positive.
    """
    for name, value in (("--cost_per_unit", cost_per_unit), ("--cost_per_run", cost_per_run),
                        ("--budget", budget)):  # fmt: skip
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name} = {value:g}: expected a positive number")
    warnings: list[str] = []
    curves = load_curves(path, columns, warn_and_keep(warnings))
    if any(curve.x2_name for curve in curves):
        raise UserError("advise takes one column of sizes; name the pool's in --group")
    with working(f"weighing the laws of {len(curves):,} curves"):
        if columns.sources:
            for flag, value in (
                ("--cost_per_unit", cost_per_unit), ("--cost_per_run", cost_per_run),
                ("--budget", budget),
            ):  # fmt: skip
                if value is not None:
                    raise UserError(f"{flag} is not for --sources; --at says for how many tokens")
            advice, notes = advise_sources(curves, at)
            for note in notes:
                warn_and_keep(warnings)(note)
        else:
            advice = advise_curves(
                curves, runs=runs_of(path), at=at, cost_per_unit=cost_per_unit,
                cost_per_run=cost_per_run, budget=budget,
            )  # fmt: skip
    if advice is None:
        raise UserError(f"{path}: no curve can be fitted; `run.py fit` says why")
    if as_json:
        record = {**advice_record(advice), "warnings": warnings}
        print(json.dumps(record, indent=1, ensure_ascii=False))
    elif len(advice.curves) > FEW and not every:
        show_many(advice, screen or console())
    else:
        show(advice, screen or console())
    return advice
