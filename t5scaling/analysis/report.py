"""From a study's directory to its report: results.csv, fits.json, figures/, report.html."""

import contextlib
import json
import os

from rich.console import Console

from t5scaling import storage
from t5scaling.analysis import page
from t5scaling.analysis.advice_figures import draw_advice
from t5scaling.analysis.advise import advise_curves
from t5scaling.analysis.curve_fit import CurveFit, document, fit_one
from t5scaling.analysis.curves import Curve, curves_of, read_results
from t5scaling.analysis.figures import draw_all
from t5scaling.analysis.harvest import harvest, read_runs
from t5scaling.analysis.tables import console, print_laws, print_results
from t5scaling.errors import UserError


def report(study_dir: str | os.PathLike, *, screen: Console | None = None) -> storage.AnyPath:
    """Tabulates, fits, draws and writes up what the finished runs of a study measured.

    Can be called while a study is still running; the same runs give the same files, byte for byte.
    Prints the tables on `screen` (default: the terminal).

    Returns:
      The path of report.html.

    Raises:
      UserError: nothing finished yet, or a damaged file.
    """
    folder = storage.path(study_dir)
    runs = read_runs(folder)
    rows = read_results(harvest(folder))
    curves = curves_of(rows)
    if not curves:
        raise UserError(
            f"{folder}: no finished run with pretraining has a result on the test split yet"
        )
    curve_fits = [fit_one(curve) for curve in sorted(curves, key=_order)]
    fits = json.dumps(document(curve_fits), indent=1, ensure_ascii=False) + "\n"
    storage.write(folder / "fits.json", fits)
    with contextlib.closing(storage.Folder(folder / "figures")) as drawn:
        figures = draw_all(curve_fits, drawn.local)
        advice = advise_curves(folder, curves)
        if advice:
            figures += draw_advice(advice, drawn.local)
        html = page.build(runs, rows, curve_fits, figures, advice)
    path = folder / "report.html"
    storage.write(path, html)
    print_tables(curve_fits, screen or console())
    return path


def is_current(study_dir: str | os.PathLike) -> bool:
    """Whether report.html is newer than everything that it reports on."""
    folder = storage.path(study_dir)
    if not (folder / "report.html").exists():
        return False
    written = storage.modified_ns(folder / "report.html")
    said = {"run.json", "DONE", "FAILED"}
    names = [n for n in storage.sizes(folder / "runs") if n.rpartition("/")[2] in said]
    changed = storage.at_once(lambda name: storage.modified_ns(folder / "runs" / name), names)
    return all(one <= written for one in changed)


def print_tables(curve_fits: list[CurveFit], screen: Console) -> None:
    """The results and the laws on the terminal."""
    print_results(curve_fits, screen)
    print_laws(curve_fits, screen)


def _order(curve: Curve) -> tuple:
    """Cross-entropy before scores: it is where laws show first."""
    return curve.metric != "cross_entropy", curve.metric, *curve.key.values()
