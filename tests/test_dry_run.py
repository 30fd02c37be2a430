"""What a study would take, and the paper's grid."""

import glob
import io
import itertools
import json
import math
import os
import re

import pytest
from rich.console import Console

from t5scaling import config
from t5scaling.errors import UserError
from t5scaling.model import network
from t5scaling.study import ahead_of_time, dry_run, expand, plan, runner
from t5scaling.study.study import points
from tests.conftest import REPOSITORY

WHOLE = "gin/studies/isik2024.gin"
FIGURES = sorted(
    os.path.relpath(path, REPOSITORY)
    for path in glob.glob(os.path.join(REPOSITORY, "gin/studies/isik2024/figure_*.gin"))
)
PAPER_TASKS = {"wmt17_translate_en_de", "wmt15_translate_en_fr", "wmt16_translate_en_ro"}
PAPER_DATA = {
    *(f"mc4_span_{name}" for name in ("en", "de", "fr", "ro")),
    *(f"mc4_span_en50_{name}50" for name in ("de", "fr", "ro")),
    "mc4_span_en30_fr70",
    "mc4_span_en70_fr30",
}


@pytest.fixture(autouse=True)
def _nothing_is_compiled(monkeypatch):
    monkeypatch.chdir(REPOSITORY)

    def compile_program(*_):
        raise AssertionError("a dry run compiles nothing")

    monkeypatch.setattr(ahead_of_time, "compile_program", compile_program)


def grid(gin_file):
    config.load([gin_file], {})
    return points(config.bindings_of(runner.run_study)["study"])


def rows_of(gin_file, places=None, **options):
    config.load([gin_file], places or {})
    text = io.StringIO()
    rows = dry_run.dry_run(console=Console(file=text, width=80), **options)
    return rows, text.getvalue()


def test_the_papers_grid_is_whole():
    everything = grid(WHOLE)
    for prefix in ("3b", "770m"):
        runs = [point for point in everything if point.study.prefix == prefix]
        pretrained = {point.data: point.sizes for point in runs if point.kind == "pretrain"}
        assert pretrained.keys() == PAPER_DATA
        for data, steps in pretrained.items():
            repeats = "ro" in data  # 510,000 steps there, a million elsewhere
            assert max(steps) == (500_000 if repeats else 1_000_000)
            assert all(b == 2 * a for a, b in itertools.pairwise(steps))
        finetuned = [point for point in runs if point.task in PAPER_TASKS]
        assert {point.task for point in finetuned} == PAPER_TASKS
        assert {point.pool for point in finetuned} == {"0.2%", "1%", None}
        assert {point.learning_rate for point in finetuned} == {0.001, 0.005, 0.01, 0.05, 0.1}
        for task in PAPER_TASKS:
            of_task = {point.data for point in finetuned if point.task == task}
            assert {None, "mc4_span_en", "mc4_span_de", "mc4_span_fr", "mc4_span_ro"} <= of_task
    superglue = [point for point in everything if point.task.startswith("superglue_")]
    assert {point.learning_rate for point in superglue} == {0.001, 0.005, 0.01, 0.05, 0.1, 0.5}


@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_buys_runs_of_the_whole_grid(figure):
    """The same runs with the same settings, so that nothing is paid for twice."""
    whole = {point.id: (expand._key(point), point.sizes) for point in grid(WHOLE)}
    own = grid(figure)
    assert 0 < len(own) < len(whole)
    for point in own:
        key, sizes = whole[point.id]
        assert (expand._key(point), set(point.sizes)) == (key, set(sizes) & set(point.sizes))
        assert all(needed in whole for needed in point.needs)


def test_every_number_follows_from_its_row(tmp_path):
    rows, text = rows_of(WHOLE, output=str(tmp_path))
    runs = grid(WHOLE)
    assert sum(row.runs for row in rows) == len(runs)
    for row in rows:
        assert row.flops == row.flops_per_step * row.steps
        assert row.device_hours == pytest.approx(row.flops / (0.4 * 275e12) / 3600)
        rows_seen = row.steps * (256 if row.kind == "pretrain" else 128)
        lengths = 512 + (114 if row.kind == "pretrain" else 64 if "glue" in row.dataset else 512)
        assert row.positions == rows_seen * lengths
        assert row.checkpoints == (7 - ("ro" in row.dataset) if row.kind == "pretrain" else 0)
    large = next(row for row in rows if row.model == "isik2024/3b")
    assert large.parameters == 3_074_813_952
    # float32 parameters, Adafactor's row and column sums, counters
    assert 1 < large.checkpoint_bytes / (4 * large.parameters) < 1.01
    written = json.loads((tmp_path / "dry_run.json").read_text())
    assert written["total"]["device_hours"] == pytest.approx(sum(row.device_hours for row in rows))
    assert (tmp_path / "dry_run.txt").read_text() == text
    # every finetuning hangs on one pretraining, or on none
    counted = re.findall(r"finetune \S+: ([\d,]+) runs", text)
    assert sum(int(number.replace(",", "")) for number in counted) == sum(
        point.kind == "finetune" for point in runs
    )


def test_a_grid_that_is_no_product_is_not_called_one():
    for gin_file, product in ((WHOLE, True), ("gin/studies/techdoc.gin", False)):
        graph = list(dry_run.graph(grid(gin_file)))
        lines = [line for line in graph if " x " in line]
        for line in lines:
            runs, *axes = (int(n.replace(",", "")) for n in re.findall(r"([\d,]+) [a-zD]", line))
            assert runs == math.prod(axes), line
        assert bool(lines) == product != any("some of" in line for line in graph)


def test_the_numbers_are_plans_and_the_studys(mini_root, tmp_path):
    places = {"STUDY_DIR": str(tmp_path), "EXAMPLES_ROOT": mini_root}
    rows, text = rows_of("tests/mini/study.gin", places, topology="v4:2x2x1", utilization=0.5)
    groups = plan.groups_of(["tests/mini/study.gin"], places)
    config.load(["tests/mini/study.gin"], places)
    runs = expand.expand(**config.bindings_of(runner.run_study))
    for row, group in zip(rows, groups, strict=True):
        program = group.program
        assert (row.kind, row.runs, row.steps) == (group.kind, group.runs, group.steps)
        assert row.flops_per_step == program.batch_size * network.model_flops(
            program.config, program.input_length, program.target_length
        )
        like = [run for run in runs if run.record["kind"] == row.kind]
        assert row.positions == sum(run.positions for run in like)
    last = max(runs[0].record["checkpoints"].values())
    assert rows[0].text_tokens == last and "counted in the examples" in text
    assert "50% ASSUMED" in text and "On v4:2x2x1's 4 chips:" in text
    for topology, devices in (("h100:8", "h100:8's 8 GPUs"), ("h100", "one device of h100")):
        _, text = rows_of("tests/mini/study.gin", places, topology=topology)
        assert "989 TFLOP/s of a device of h100" in text and f"On {devices}:" in text


def test_mistakes():
    config.load(["gin/models/tiny.gin", "gin/runs/pretrain.gin"], {})
    with pytest.raises(UserError, match="describe no study"):
        dry_run.dry_run()
    with pytest.raises(UserError, match=r"share of the peak"):
        rows_of(WHOLE, utilization=1.5)
    with pytest.raises(UserError, match="v4"):
        rows_of(WHOLE, topology="v4x:2x2x1")
