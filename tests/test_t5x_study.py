"""Directories of stock T5X under `report`, `status` and `export`."""

import csv
import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from t5scaling.analysis import archive, report
from t5scaling.analysis.results import curves, harvest, t5x_study
from t5scaling.analysis.results.t5x_runs import read_t5x_runs
from t5scaling.errors import UserError
from tests.test_t5x_runs import events, lines

LENGTHS = "TASK_FEATURE_LENGTHS = {'inputs': 100, 'targets': 28}"


def config(run, text):
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.gin").write_text(text + "\n")


def losses(run, source, step, nats, factor=1.0, steps=4):
    """As T5X logs them: 25 target tokens a batch and a z-loss of 0.1 nats a token."""
    total = 25 * (nats + 0.1) / factor
    values = {
        "loss": total, "cross_ent_loss": 25 * nats / factor, "timing/seconds": 3600.0,
        "loss_per_nonpadding_target_token": total / 25,
        "non_padding_fraction/loss_weights": 0.5, "timing/seqs_per_second": 8.0,
        "timing/seqs_per_second_per_core": 4.0,
    }  # fmt: skip
    events(run / source, [(step, name, value) for name, value in values.items()])


@pytest.fixture
def folder(tmp_path):
    """A pretraining of 4,000 steps, finetunings from four of its checkpoints and from none, and
    what `t5x.eval` measured of two of them."""
    runs = tmp_path / "ours"
    base = f"MIXTURE_OR_TASK_NAME = 'c4'\nTRAIN_STEPS = 4000\nBATCH_SIZE = 16\n{LENGTHS}"
    config(runs / "base", base)
    losses(runs / "base", "train", 4000, 3.0)
    for start in (0, 500, 1000, 2000, 4000):
        run = runs / f"wmt_{start}"
        initial = f"INITIAL_CHECKPOINT_PATH = 'gs://b/base/checkpoint_{start}'" if start else ""
        config(run, f"{initial}\nMIXTURE_OR_TASK_NAME = 'wmt'\nTRAIN_STEPS = {start + 10}\n"
                    f"BATCH_SIZE = 8\n{LENGTHS}\nRANDOM_SEED = 3\n"
                    "utils.create_learning_rate_scheduler.base_learning_rate = 0.01\n"
                    "infer_eval/utils.DatasetConfig.split = 'validation'\n"
                    "train_eval/utils.DatasetConfig.split = 'validation'")  # fmt: skip
        (run / "model-info.txt").write_text("Total number of parameters: 77\n")
        better = math.log2(1 + start / 500)
        losses(run, "training_eval/wmt", start + 10, 4 - 0.5 * better)
    return runs


def test_report_status_and_export(folder, tmp_path, capsys):
    report.report(folder, screen=Console(file=io.StringIO()))
    with open(folder / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(r["metric"], r["split"]) for r in rows} == {("cross_entropy", "validation")}
    sizes = {int(r["pretrain_tokens"]) for r in rows}
    assert sizes == {0, *(steps * 16 * 128 for steps in (500, 1000, 2000, 4000))}
    last = next(r for r in rows if r["run"] == "wmt_4000" and r["metric"] == "cross_entropy")
    assert math.isclose(float(last["value"]), 4 - 0.5 * math.log2(9), rel_tol=1e-6)
    assert last["pretrain_data"] == "c4" and last["parameters"] == "77" and last["seed"] == "3"
    assert int(last["finetune_examples"]) == 80 and last["steps"] == "10"
    page = (folder / "report.html").read_text()
    assert "8,192,000 token positions of pretraining" in page and "text tokens" not in page
    assert "measured on another split: Cross-entropy on validation" in page

    t5x_study.show(folder, Console(width=100))
    shown = capsys.readouterr().out
    assert "wmt_4000" in shown and "4010/4010" in shown and "6 runs of T5X: 6 done" in shown

    packed = archive.export(folder, str(tmp_path / "ours.tar.gz"))
    again = archive.opened(str(packed))
    assert Path(again, "results.csv").read_bytes() == (folder / "results.csv").read_bytes()


def test_an_evaluation_apart_belongs_to_its_run(folder):
    config(folder / "eval_wmt", "CHECKPOINT_PATH = '/x/ours/wmt_2000/checkpoint_2010'\n"
           "utils.DatasetConfig.split = 'test'")  # fmt: skip
    lines(folder / "eval_wmt", "wmt",
          {"step": 2010, "bleu": 20.0, "bleu_low": 19.0, "bleu_precision_1": 50.0})  # fmt: skip
    config(folder / "eval_base", "CHECKPOINT_PATH = '/x/ours/base/checkpoint_1000'")
    lines(folder / "eval_base", "wmt", {"step": 1000, "bleu": 0.5})
    found = {row["run"]: row for row in read_t5x_runs(folder) if row["run"].startswith("eval")}
    t5x_study.show(folder, console := Console(file=io.StringIO(), width=100))
    assert "evaluation of wmt_2000" in console.file.getvalue()
    names = ("pretrain_run", "pretrain_steps", "finetune_steps", "split")
    assert [found["eval_wmt"][n] for n in names] == ["base", 2000, 10, "test"]
    assert [found["eval_base"][n] for n in names] == ["base", 1000, 0, ""]
    t5x_study.write(folder, harvest.COLUMNS)
    with open(folder / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    (row,) = [r for r in rows if r["run"] == "wmt_2000" and r["metric"] == "bleu"]
    assert row["split"] == "test" and row["learning_rate"] == "0.01"
    assert int(row["pretrain_tokens"]) == 2000 * 16 * 128
    of_run = {r["metric"] for r in rows if r["run"] == "wmt_2000"}
    assert of_run == {"cross_entropy", "bleu", "bleu_precision_1"}
    # Each metric by the split that it was measured on: the cross-entropy is of the validation.
    found = curves.curves_of(curves.read_results(folder / "results.csv"))
    splits = {(c.metric, c.facts["split"]) for c in found if c.place.data == "c4"}
    assert splits == {("bleu", "test"), ("cross_entropy", "validation")}
    (row,) = [r for r in rows if r["run"] == "eval_base"]  # of the pretraining's own checkpoint
    assert (row["pretrain_tokens"], row["steps"]) == (str(1000 * 16 * 128), "0")


@pytest.mark.parametrize("missing", ["BATCH_SIZE", "TASK_FEATURE_LENGTHS"])
def test_a_finetuning_of_unknown_size_is_refused(folder, missing):
    """Its pool would be 0, and pools that nobody knows would be one pool."""
    path = folder / "wmt_2000" / "config.gin"
    kept = [line for line in path.read_text().splitlines() if not line.startswith(missing)]
    path.write_text("\n".join(kept))
    with pytest.raises(UserError, match="how many tokens a step of wmt_2000 has"):
        t5x_study.write(folder, harvest.COLUMNS)


def test_a_pretraining_that_is_not_here_is_asked_for(folder):
    (folder / "base" / "config.gin").unlink()
    with pytest.raises(UserError, match=r"base/config\.gin does not say how many tokens a step"):
        t5x_study.write(folder, harvest.COLUMNS)


def test_a_run_that_has_not_ended_is_left_out(folder):
    text = (folder / "wmt_500" / "config.gin").read_text()
    (folder / "wmt_500" / "config.gin").write_text(text.replace("510", "600"))
    t5x_study.write(folder, harvest.COLUMNS)
    assert "wmt_500," not in (folder / "results.csv").read_text()
    runs = {run["id"]: run for run in harvest.read_runs(folder)}
    assert not runs["wmt_500"].done and runs["wmt_1000"].done


@pytest.mark.parametrize(
    "factor, divisor, known",
    [
        ("None", 1.0, True),
        ("233.0", 233.0, True),
        ("'NUM_REAL_TARGET_TOKENS'", 25.0, True),
        ("'num_total_target_tokens'", 50.0, True),
        ("'AVERAGE_PER_SEQUENCE'", 7.0, False),
    ],
)
def test_cross_entropy_by_normalizer(tmp_path, factor, divisor, known):
    config(tmp_path, f"LOSS_NORMALIZING_FACTOR = {factor}")
    losses(tmp_path, "train", 4, 3.0, divisor)
    found = [r["value"] for r in read_t5x_runs(tmp_path) if r["metric"] == "cross_entropy"]
    assert len(found) == known and all(math.isclose(v, 3.0, rel_tol=1e-5) for v in found)


def test_test_scores_measured_apart_go_by_the_validation_of_their_run(folder):
    """Two rates at three places: the test scores lie in folders of t5x.eval, the validation loss in
    the finetunings' own."""
    for start, nats in ((1000, 9.0), (2000, 2.0), (4000, 9.0)):  # better than 0.01 at 2,000 alone
        text = (folder / f"wmt_{start}" / "config.gin").read_text()
        config(folder / f"wmt_{start}_fast", text.replace("= 0.01", "= 0.1"))
        losses(folder / f"wmt_{start}_fast", "training_eval/wmt", start + 10, nats)
    for run, bleu in (("wmt_2000", 20.0), ("wmt_2000_fast", 21.0)):
        config(folder / f"eval_{run}", f"CHECKPOINT_PATH = '/x/ours/{run}/checkpoint_2010'\n"
               "utils.DatasetConfig.split = 'test'")  # fmt: skip
        lines(folder / f"eval_{run}", "wmt", {"step": 2010, "bleu": bleu})
    t5x_study.write(folder, harvest.COLUMNS)
    found = curves.curves_of(curves.read_results(folder / "results.csv"))
    (curve,) = [curve for curve in found if curve.metric == "bleu"]
    (point,) = curve.points
    assert (curve.facts["split"], point.value, point.learning_rate) == ("test", 21.0, 0.1)
    assert point.run == "wmt_2000_fast"


def test_a_rate_that_no_setting_names_stays_empty(folder):
    for path in folder.glob("wmt_*/config.gin"):
        kept = [line for line in path.read_text().splitlines() if "learning_rate" not in line]
        path.write_text("\n".join(kept))
    report.report(folder, screen=Console(file=io.StringIO()))
    rows = curves.read_results(folder / "results.csv")
    assert {row["learning_rate"] for row in rows} == {None}
    assert all(p.learning_rate is None for p in curves.curves_of(rows)[0].points)
