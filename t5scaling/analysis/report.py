"""From a study's directory to its report: tables, fits.json, findings.json, figures and page."""

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from t5scaling import storage
from t5scaling.analysis.base_rates import report_base_rates
from t5scaling.analysis.conclusions.base_rates import is_sweep
from t5scaling.analysis.conclusions.curve_fit import FILE as FITS
from t5scaling.analysis.conclusions.curve_fit import CurveFit, fit_one
from t5scaling.analysis.conclusions.curve_fit import document as fits_document
from t5scaling.analysis.conclusions.findings import FILE as FINDINGS
from t5scaling.analysis.conclusions.findings import conclude, document
from t5scaling.analysis.metrics import LOSS
from t5scaling.analysis.presentation.advice_figures import draw_advice
from t5scaling.analysis.presentation.figures import draw_all
from t5scaling.analysis.presentation.html import page
from t5scaling.analysis.presentation.style import role_colour
from t5scaling.analysis.presentation.terminal import console, print_laws, print_results
from t5scaling.analysis.results.curves import Curve, curves_of, read_results
from t5scaling.analysis.results.harvest import (
    check_agree,
    left_out,
    note_reported,
    read_runs,
    results_of,
    state_of,
)
from t5scaling.analysis.results.places import Place
from t5scaling.errors import UserError
from t5scaling.records import REPORT


def report(study_dir: str | os.PathLike, *, screen: Console | None = None) -> storage.AnyPath:
    """Tabulates, fits, draws and writes up what the finished runs of a study measured.

    Can be called while a study is still running; the same runs give the same files, byte for byte,
    and so do results.csv and runs.jsonl where the run directories are gone.
    Prints the tables on `screen` (default: the terminal).

    Returns:
      The path of report.html; of base_rates.csv, if the study compares base rates of pretraining.

    Raises:
      UserError: nothing finished yet, or a damaged file.
    """
    folder = storage.path(study_dir)
    if is_sweep(folder):
        return report_base_rates(folder, screen=screen)
    state = state_of(folder)  # first: what ends meanwhile is for the next report
    rows = read_results(results_of(folder))
    runs = read_runs(folder)
    check_agree(rows, folder)
    curves = curves_of(rows)
    if not curves:
        raise UserError(
            f"{folder}: no finished run with pretraining has a result on the test split yet"
        )
    curve_fits = [fit_one(curve) for curve in sorted(curves, key=_order)]
    storage.write(folder / FITS, _json(fits_document(curve_fits)))
    findings = conclude(runs, rows, curve_fits)
    storage.write(folder / FINDINGS, _json(document(findings)))
    roles = findings.selection.roles

    def colour_of(place: Place) -> str:
        return role_colour(roles, place)

    with contextlib.closing(storage.Folder(folder / "figures")) as drawn:
        figures = draw_all(findings.shown, drawn.local, colour_of)
        if findings.advice:
            figures += draw_advice(findings.advice, drawn.local, colour_of, next_runs=False)
        absent = left_out(folder, runs)
        html = page.build(findings, runs, rows, figures, absent)
    path = folder / REPORT
    storage.write(path, html)
    note_reported(folder, state)
    screen = screen or console()
    print_tables(curve_fits, screen)
    if absent:
        screen.print(absent, soft_wrap=True)
    return path


def print_tables(curve_fits: list[CurveFit], screen: Console) -> None:
    """The results and the laws on the terminal."""
    print_results(curve_fits, screen)
    print_laws(curve_fits, screen)


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _order(curve: Curve) -> tuple:
    """Cross-entropy before scores: it is where laws show first."""
    return curve.metric != LOSS, curve.metric, *curve.place.key.values()
