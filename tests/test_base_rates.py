"""Base rates of pretraining: run for run, and which one is the best."""

import csv
import io
import json

import pytest
from rich.console import Console

from t5scaling import config
from t5scaling.analysis import report
from t5scaling.errors import UserError
from t5scaling.study import dry_run, expand, runner
from t5scaling.study.study import Study, points
from tests.conftest import REPOSITORY

RATES = (0.1, 1.0, 4.0)


def sweep(**changes):
    settings = {
        "name": "rates",
        "model_gin": "tests/mini/model.gin",
        "pretrain_gin": "gin/runs/pretrain.gin",
        "pretrain_data": {"mini_span_en50_de50": {"en": 0.5, "de": 0.5}},
        "pretrain_steps": (20,),
        "base_rates": RATES,
        "pretrain_settings": {
            "BATCH_SIZE": 8,
            "TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 24},
            "TASK_MODULES": ("tests.mini_tasks",),
            "LOG_EVERY": 1,
        },
    }
    return Study(**{**settings, **changes})


def said(study_dir):
    text = io.StringIO()
    path = report.report(study_dir, screen=Console(file=text, width=120))
    with open(path, newline="") as file:
        return list(csv.DictReader(file)), text.getvalue()


def test_each_rate_is_run_and_the_lowest_loss_is_best(mini_root, tmp_path):
    runs = expand.expand(sweep(), str(tmp_path), mini_root)
    assert [run.bindings["BASE_LEARNING_RATE"] for run in runs] == list(RATES)
    assert len({run.record["settings"] for run in runs}) == len(RATES)
    places = {"study_dir": str(tmp_path), "examples_root": mini_root}
    config.load(["tests/mini/study.gin"], {k.upper(): v for k, v in places.items()})
    assert runner.run_study(study=sweep(), **places) == []

    rows, text = said(tmp_path)
    upstream = {}
    for run in runs:
        with open(f"{run.directory}/metrics.jsonl") as file:
            lines = [json.loads(line) for line in file][-2:]  # of 20, the last tenth
        assert [line["step"] for line in lines] == [19, 20]
        loss = sum(line["loss"] * line["target_tokens"] for line in lines)
        rate = run.bindings["BASE_LEARNING_RATE"]
        upstream[rate] = loss / sum(line["target_tokens"] for line in lines)
    found = {float(row["base_rate"]): float(row["cross_entropy"]) for row in rows}
    assert found == pytest.approx(upstream, rel=1e-12)
    assert len(set(found.values())) == len(RATES)
    best = min(found, key=found.get)
    assert [float(row["base_rate"]) for row in rows if row["best"] == "1"] == [best]
    assert f"BASE_LEARNING_RATE = {best:g}" in text


def made_up(folder, losses, unfinished=()):
    for rate, loss in losses.items():
        run = folder / "runs" / "pretrain" / "en" / f"base={rate:g}"
        run.mkdir(parents=True)
        record = {
            "id": f"pretrain/en/base={rate:g}", "kind": "pretrain", "model": "tiny",
            "pretrain_data": "en", "base_rate": rate, "steps": 100,
        }  # fmt: skip
        (run / "run.json").write_text(json.dumps(record))
        lines = [
            {"step": step, "split": "train", "loss": loss if step > 90 else 9.0, "target_tokens": n}
            for step, n in ((90, 10), (95, 10), (100, 30))
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if rate not in unfinished:
            (run / "DONE").write_text("{}")
    return folder


def test_an_edge_is_said_and_the_middle_is_not(tmp_path):
    _, text = said(made_up(tmp_path / "edge", {0.5: 3.0, 1.0: 3.5, 2.0: 4.0}))
    assert "BASE_LEARNING_RATE = 0.5, at the edge" in text
    _, text = said(made_up(tmp_path / "middle", {0.5: 3.0, 1.0: 2.5, 2.0: 4.0}))
    assert "BASE_LEARNING_RATE = 1\n" in text


def test_nothing_is_chosen_before_all_are_done(tmp_path):
    rows, text = said(made_up(tmp_path, {0.5: 3.0, 1.0: 2.5}, unfinished=(1.0,)))
    assert "not finished: 1" in text and "BASE_LEARNING_RATE" not in text
    assert [row["best"] for row in rows] == ["0"]


def test_rates_are_compared_without_tasks():
    with pytest.raises(UserError, match="leave out tasks"):
        sweep(tasks={"mini_translate_en_de": ("en", "de")})
    with pytest.raises(UserError, match="tasks is empty"):
        sweep(base_rates=(), finetune_gin="gin/runs/finetune.gin")
    with pytest.raises(UserError, match="repeats a value"):
        sweep(base_rates=(1.0, 1.0))


def test_the_papers_rates_are_written_down(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    config.load(["gin/studies/isik2024/base_rates.gin"], {})
    grid = points(config.bindings_of(runner.run_study)["study"])
    rates = {}
    for point in grid:
        rates.setdefault(point.study.prefix, []).append(point.learning_rate)
    published = [0.05, 0.1, 0.5, 1.0, 2.0, 5.0]
    assert rates == {"3b": published, "770m": published}
    rows = dry_run.dry_run(console=Console(file=io.StringIO(), width=120))
    assert [(row.runs, row.steps, row.checkpoints) for row in rows] == [(6, 6 * 31_250, 6)] * 2
