"""`run.py report` on a study that compares base rates of pretraining: its table and the best."""

import csv
import io
import os

from rich.console import Console
from rich.table import Table

from t5scaling import storage
from t5scaling.analysis.conclusions.base_rates import FILE, base_rates_of
from t5scaling.analysis.presentation.terminal import console
from t5scaling.analysis.results.harvest import read_directories
from t5scaling.analysis.wording import number


def report_base_rates(
    study_dir: str | os.PathLike, *, screen: Console | None = None
) -> storage.AnyPath:
    """Writes `<study_dir>/base_rates.csv`, prints it with the best rates, and returns its path.

    Raises UserError if no run has finished, or a file of a finished one is damaged.
    """
    path = storage.path(study_dir) / FILE
    found = base_rates_of(read_directories(study_dir))
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("model", "pretrain_data", "base_rate", "cross_entropy", "best"))
    table = Table("model", "pretraining data", "base rate", "upstream cross-entropy", "")
    for one in found:
        for rate, loss in sorted(one.losses.items()):
            best = rate == one.best and not one.left
            rows.writerow((one.model, one.data, repr(rate), repr(loss), int(best)))
            table.add_row(one.model, one.data, f"{rate:g}", number(loss), "best" * best)
    storage.write(path, text.getvalue())
    screen = screen or console()
    screen.print(table)
    for one in found:
        screen.print(f"{one.model}, {one.data}: {one.sentence}", soft_wrap=True)
    return path
