"""Promises of a study: what it expands to, and that no kill changes its results."""

import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import run
from t5scaling import config, records, verbs
from t5scaling.analysis import report
from t5scaling.analysis.results import harvest
from t5scaling.data.examples import find_examples
from t5scaling.errors import UserError
from t5scaling.study import dry_run, expand, runner, status, study
from t5scaling.study.executors import local
from t5scaling.training import checkpoint, claim
from tests import mini
from tests.conftest import REPOSITORY

SAVE_OFTEN = "--gin.SAVE_MINUTES=0.0"


def load(study_dir, root, **bindings):
    places = {"STUDY_DIR": str(study_dir), "EXAMPLES_ROOT": root}
    config.load([mini.STUDY], {**places, **bindings})
    return config.bindings_of(runner.run_study)


def start(study_dir, root, *extra, **options):
    """A process of its own."""
    words = [sys.executable, "run.py", *mini.study(study_dir, root, *extra)]
    return subprocess.Popen(words, cwd=REPOSITORY, text=True, **options)


def test_the_grid(mini_root, tmp_path):
    runs = expand.expand(**load(tmp_path, mini_root, LEARNING_RATES=(0.01, 0.02)))
    ids = [run.id for run in runs]
    assert ids[0] == "pretrain/mini_span_en50_de50"
    assert len(ids) == len(set(ids)) == 1 + (3 + 1) * 2
    assert ("finetune/mini_span_en50_de50/dp=6k/mini_translate_en_de/df=3k/lr=0.02/seed=0") in ids
    pretrain = runs[0]
    points = {int(step): tokens for step, tokens in pretrain.record["checkpoints"].items()}
    # The smallest whole number of batches that covers the budget, in true tokens.
    for asked, (step, tokens) in zip((3000, 6000, 12000), sorted(points.items()), strict=True):
        assert asked <= tokens < asked + 8 * 80
        run = next(r for r in runs if f"dp={asked // 1000}k" in r.id)
        assert run.record["pretrain_tokens"] == tokens and run.needs == (pretrain.id,)
        assert run.bindings["INITIAL_CHECKPOINT_PATH"].endswith(f"checkpoint_{step}")
    baseline = [run for run in runs if run.record.get("pretrain_tokens") == 0]
    assert len(baseline) == 2
    assert all(run.bindings["INITIAL_CHECKPOINT_PATH"] is None for run in baseline)


def test_shares_of_the_examples_are_nested_pools(mini_root, tmp_path):
    """The paper's 0.2 %, 1 % and 100 %, scaled to a task of 135 rows."""
    arguments = load(tmp_path, mini_root)
    shares = dataclasses.replace(arguments["study"], finetune_pools=("2%", "10%", "100%", None))
    runs = [
        run
        for run in expand.expand(**{**arguments, "study": shares})
        if run.record["kind"] == "finetune" and not run.record["pretrain_tokens"]
    ]
    assert [run.record["finetune_pool"] for run in runs] == ["2pct", "10pct", "100pct", "all"]
    examples = [run.record["finetune_examples"] for run in runs]
    assert examples[3] == examples[2] == 300
    # Whole rows, several pairs packed into each: the smallest number that holds the share.
    assert 6 <= examples[0] < 6 + 10 and 30 <= examples[1] < 30 + 10
    assert [run.bindings["POOL"] for run in runs] == ["2%", "10%", "100%", None]
    for wrong in ("0%", "101%", "many", 0, 0.5):
        with pytest.raises(UserError, match="expected a number of text tokens, a share"):
            dataclasses.replace(arguments["study"], finetune_pools=(wrong,))


def test_budgets_beyond_the_data_stop_before_anything_runs(mini_root, tmp_path):
    arguments = load(tmp_path / "s", mini_root)
    too_much = dataclasses.replace(arguments["study"], pretrain_tokens=(0, 10**7))
    with pytest.raises(UserError, match="10,000,000 text tokens"):
        runner.run_study(**{**arguments, "study": too_much})
    too_close = dataclasses.replace(arguments["study"], pretrain_tokens=(3000, 3001))
    with pytest.raises(UserError, match="are both step"):
        runner.run_study(**{**arguments, "study": too_close})
    assert not (tmp_path / "s/runs").exists()


def test_results_have_a_row_for_each_measurement(mini_study):
    import pandas as pd

    table = pd.read_csv(mini_study / "results.csv")
    test = table[(table.split == "test") & (table.metric == "cross_entropy")]
    assert list(test.pretrain_tokens) == sorted(test.pretrain_tokens) and len(test) == 4
    assert test.value.iloc[-1] < test.value.iloc[0]
    parts = {"bleu_brevity_penalty", *(f"bleu_precision_{n}" for n in (1, 2, 3, 4))}
    assert set(table[table.split == "test"].metric) == {"cross_entropy", "bleu", "chrf"} | parts
    assert (table[table.pretrain_tokens > 0].alignment == 1.0).all()
    for name in ("fits.json", "report.html"):
        assert (mini_study / name).stat().st_size > 100


def test_t5x_layout_of_predictions(mini_study):
    (folder,) = mini_study.glob("runs/finetune/none/*/*/*/*/*/inference_eval")
    outputs = [
        json.loads(line)
        for line in (folder / "mini_translate_en_de-000010.jsonl").read_text().splitlines()
    ]
    assert len(outputs) == 24
    assert outputs[0]["input"]["inputs_pretokenized"].startswith("translate English to German: ")
    assert outputs[0]["target"] == outputs[0]["input"]["targets_pretokenized"]
    assert isinstance(outputs[0]["prediction"], str)
    (metrics,) = map(
        json.loads, (folder / "mini_translate_en_de-metrics.jsonl").read_text().splitlines()
    )
    assert metrics["step"] == 10 and "tok:13a" in metrics["bleu_signature"]


def test_a_finished_study_is_left_alone(mini_study, mini_root, capsys):
    before = {p: p.stat().st_mtime_ns for p in mini_study.glob("runs/**/*") if p.is_file()}
    capsys.readouterr()
    assert run.main(mini.study(mini_study, mini_root)) == 0
    assert capsys.readouterr().out.count("already done") == 5
    after = {p: p.stat().st_mtime_ns for p in mini_study.glob("runs/**/*") if p.is_file()}
    assert before == after


def test_shared_with_a_process_that_is_killed(mini_study, mini_root, tmp_path, capsys):
    """Another process is at work on the study, and is killed with -9 at a random moment of its
    training; this one, at work on it too, takes its run over and goes on from what it saved."""
    random.seed(20260101)
    folder = tmp_path / "shared"
    settings = {**mini.SMALL, "runner.run_study.poll_seconds": 0.5}
    given = (f"--gin.{name}={value}" for name, value in settings.items())
    options = {"stdout": subprocess.DEVNULL, "start_new_session": True}
    other = start(folder, mini_root, *given, SAVE_OFTEN, **options)
    deadline = time.monotonic() + 240

    def has_run(*, saved):
        """Whether the other is at work on a run, and has saved some of it."""
        return any(
            holder.alive and (not saved or checkpoint.newest_step(str(folder / "runs" / name)))
            for name, holder in holders(folder).items()
            if holder.pid == other.pid
        )

    def wait(*, saved):
        while not has_run(saved=saved) and time.monotonic() < deadline:
            time.sleep(0.1)

    def kill():
        # Not before it has saved something, or the kill would hit the compilation.
        wait(saved=True)
        time.sleep(random.uniform(0, 0.4))
        at_work = has_run(saved=False)
        os.killpg(other.pid, signal.SIGKILL)
        other.wait()
        assert at_work
        mine = [name for name, holder in holders(folder).items() if holder.pid == other.pid]
        return sorted(set(mine) & set(done_in(folder)))

    wait(saved=False)
    load(folder, mini_root, **settings)
    capsys.readouterr()
    with ThreadPoolExecutor(1) as threads:
        killed = threads.submit(kill)
        assert config.call(runner.run_study) == []
        done_by_the_other = killed.result()
    said = capsys.readouterr().out
    # Each run was done by one of them, and found done by the other.
    done = re.findall(r"\] (\S+): \d+ s", said)
    assert sorted([*done_by_the_other, *done]) == done_in(folder) and len(done_in(folder)) == 3
    assert harvest.harvest(folder).read_text() == mini.results_of_small(mini_study)
    for name in done_in(folder):
        metrics = f"runs/{name}/metrics.jsonl"
        assert (folder / metrics).read_bytes() == (mini_study / metrics).read_bytes(), name


def holders(folder: Path) -> dict[str, claim.Holder]:
    """Run -> its last claim."""
    found = {path.parent for path in folder.glob("runs/**/claims")}
    claims = {str(path.relative_to(folder / "runs")): claim.latest(str(path)) for path in found}
    return {run: holder for run, holder in claims.items() if holder}


def done_in(folder: Path) -> list[str]:
    runs = folder / "runs"
    return sorted(str(path.parent.relative_to(runs)) for path in runs.glob("**/DONE"))


def test_one_of_two_processes_writes_the_report(tmp_path, monkeypatch, capsys):
    """The other waits until it is there."""
    (tmp_path / "runs").mkdir()
    writes, may_end, written = threading.Event(), threading.Event(), []

    def write(study_dir):
        written.append(study_dir)
        writes.set()
        assert may_end.wait(60)
        (tmp_path / records.REPORT).write_text("a report")
        harvest.note_reported(study_dir, harvest.state_of(study_dir))

    monkeypatch.setattr(report, "report", write)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(verbs._report_once, str(tmp_path))
        assert writes.wait(60)
        second = threads.submit(verbs._report_once, str(tmp_path))
        said, deadline = "", time.monotonic() + 60
        while "writes the report: waiting" not in said and time.monotonic() < deadline:
            said += capsys.readouterr().out
            time.sleep(0.01)
        assert not second.done()
        may_end.set()
        first.result(), second.result()
    assert written == [str(tmp_path)]
    assert f"process {os.getpid()} on " in said and "waiting" in said


def test_a_failed_run_does_not_stop_the_others(mini_root, tmp_path, capsys):
    """A learning rate without bounds fails its runs, is said, and leaves the other rate's."""
    rates, sizes = "LEARNING_RATES=(1e30, 0.01)", "study.Study.pretrain_tokens=(3_000,)"
    assert run.main(mini.study(tmp_path, mini_root, f"--gin.{rates}", f"--gin.{sizes}")) == 1
    (failed,) = tmp_path.glob("runs/**/FAILED")
    assert "lr=1e+30" in str(failed)
    assert "not finite at step" in json.loads(failed.read_text())["reason"]
    done = max(tmp_path.glob("runs/**/DONE"), key=lambda path: path.stat().st_mtime_ns)
    assert "lr=0.01" in str(done) and failed.stat().st_mtime_ns < done.stat().st_mtime_ns
    assert len(list(tmp_path.glob("runs/**/DONE"))) == 2
    assert "1 of 3 runs are not done" in capsys.readouterr().out
    assert (tmp_path / "report.html").exists()


def test_changed_settings_are_refused(mini_study, mini_root):
    arguments = load(mini_study, mini_root)
    longer = dataclasses.replace(
        arguments["study"],
        finetune_settings={**arguments["study"].finetune_settings, "TRAIN_STEPS": 11},
    )
    with pytest.raises(UserError, match=r"other settings \(TRAIN_STEPS = 10 there, .* 11 now\)"):
        runner.run_study(**{**arguments, "study": longer})


def test_a_run_that_fails_three_times_is_parked(mini_root, tmp_path, monkeypatch):
    """An error that may mend itself is tried again in one launch, a user's mistake at the next."""
    arguments = load(tmp_path, mini_root)
    calls = []

    def break_down(**_):
        calls.append(1)
        raise RuntimeError("the disk is away")

    monkeypatch.setattr(local.config, "call", lambda function, **given: break_down())
    failed = runner.run_study(**arguments)
    assert len(failed) == 5
    pretrain = tmp_path / "runs/pretrain/mini_span_en50_de50"
    assert json.loads((pretrain / "FAILED").read_text())["failures"] == 3
    assert [run.state for run in status.statuses(str(tmp_path))].count("parked") == 2
    assert len(calls) == 2 * 3  # the pretraining and the baseline; the others wait
    runner.run_study(**arguments)
    assert len(calls) == 2 * 3
    (pretrain / "FAILED").unlink()
    runner.run_study(**arguments)
    assert len(calls) == 3 * 3


def test_parts_share_runs_and_refuse_to_disagree(mini_root, tmp_path):
    arguments = load(tmp_path, mini_root)
    whole = dataclasses.replace(arguments["study"], part="whole")
    part = dataclasses.replace(whole, part="part", pretrain_tokens=(0, 6_000, 9_000))
    ids = [point.id for point in study.points((whole, part))]
    assert len(ids) == len(set(ids)) == 1 + 5
    pretrain = study.points((whole, part))[0]
    assert pretrain.sizes == (3_000, 6_000, 9_000, 12_000)
    runs = expand.expand(**{**arguments, "study": (whole, part)})
    assert [run.id for run in runs] == ids
    assert len(runs[0].bindings["CHECKPOINT_STEPS"]) == 4
    other = dataclasses.replace(part, finetune_settings={**part.finetune_settings, "SEED": 3})
    with pytest.raises(UserError, match=r"'whole' and 'part' both have the run finetune/.* prefix"):
        study.points((whole, other))
    assert len(study.points((whole, dataclasses.replace(other, prefix="other")))) == 5 + 4
    with pytest.raises(UserError, match="share its name"):
        study.points((whole, dataclasses.replace(part, name="another")))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("seeds", [0.5, "1", -1, True, None, 2**32, float("nan")]),
        ("learning_rates", [0, -0.1, "0.1", float("inf"), float("nan"), None, True]),
        ("pretrain_tokens", [-1, 0.5, "1M", None, True, float("inf")]),
        ("finetune_pools", ["0%", "101%", "%", "1", "-1%", "nan%", 0, -5, 0.5, True]),
    ],
)
def test_values_that_no_run_can_have(mini_root, tmp_path, field, values):
    grid = load(tmp_path, mini_root)["study"]
    for value in values:
        with pytest.raises(UserError, match=f"study mini: {field} holds .*; expected "):
            dataclasses.replace(grid, **{field: (value,)})
    first = getattr(grid, field)[0]
    with pytest.raises(UserError, match=f"{field}=.* repeats a value"):
        dataclasses.replace(grid, **{field: (first, first)})


@pytest.mark.parametrize("share", [1.5, -0.5, "1", None, True, float("nan")])
def test_shares_are_from_0_to_1(mini_root, tmp_path, share):
    grid = load(tmp_path, mini_root)["study"]
    with pytest.raises(UserError, match=r"the share of en in x is .* from 0 to 1"):
        dataclasses.replace(grid, pretrain_data={"x": {"en": share, "de": -0.5}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefix": "../../.."}, r"'\.\.' in the id of a run: it would lie outside"),
        ({"prefix": "/tmp"}, "'' in the id of a run: it would lie outside"),
        ({"prefix": "a/./b"}, r"'\.' in the id"),
        ({"prefix": "sweep[lr=0.1]"}, r"\[ and \] in a path would be taken for a pattern"),
        ({"prefix": "a\\b"}, "would be taken for a pattern"),
        ({"prefix": "a\nb"}, "not text on one line"),
        ({"prefix": "\u2028"}, "not text on one line"),
        ({"tasks": {"t" * 300: ("en", "de")}}, "300 bytes, more than the 180"),
        ({"pretrain_data": {"ä" * 100: {"de": 1.0}}}, "200 bytes, more than the 180"),
        ({"learning_rates": (0.00123456, 0.001234561)}, "different learning rates"),
    ],
)
def test_ids_that_no_run_can_have(mini_root, tmp_path, changes, message):
    arguments = load(tmp_path / "s", mini_root)
    with pytest.raises(UserError, match=message):
        runner.run_study(
            **{**arguments, "study": dataclasses.replace(arguments["study"], **changes)}
        )
    assert not (tmp_path / "s/runs").exists()


@pytest.mark.parametrize("name", ["sweep[1]", "a]", "a\\b"])
def test_folders_that_would_be_taken_for_patterns(mini_root, tmp_path, name):
    """A run in one would say DONE, and its checkpoints could not be read."""
    arguments = load(tmp_path / name / "s", mini_root)
    with pytest.raises(UserError, match=r"STUDY_DIR='.*': .* would be taken for a pattern"):
        runner.run_study(**arguments)
    with pytest.raises(UserError, match=r"STUDY_DIR='.*': .* would be taken for a pattern"):
        dry_run.dry_run()
    with pytest.raises(UserError, match=r"MODEL_DIR='.*': .* would be taken for a pattern"):
        checkpoint.choose(str(tmp_path / name), "last")
    for macro in ("MODEL_DIR", "INITIAL_CHECKPOINT_PATH"):
        files = ["gin/models/tiny.gin", "gin/runs/finetune.gin"]
        settings = {"MODEL_DIR": str(tmp_path / "run"), "INITIAL_CHECKPOINT_PATH": "x/checkpoint_1"}
        settings |= {macro: str(tmp_path / name), "MIXTURE_OR_TASK_NAME": "x"}
        text = config.load(files, settings | {"EXAMPLES_ROOT": mini_root})
        with pytest.raises(UserError, match=rf"{macro}='.*': .* would be taken for a pattern"):
            local.train(text)
    assert not list(tmp_path.iterdir())


def test_sizes_by_steps(mini_root, tmp_path):
    arguments = load(tmp_path, mini_root)
    by_steps = dataclasses.replace(arguments["study"], pretrain_tokens=(), pretrain_steps=(0, 2, 4))
    runs = expand.expand(**{**arguments, "study": by_steps})
    assert runs[0].record["steps"] == 4
    assert runs[-1].id.startswith("finetune/mini_span_en50_de50/dp=4steps/")
    assert runs[-1].record["pretrain_tokens"] == runs[0].record["checkpoints"]["4"] > 0
    with pytest.raises(UserError, match=r"D_p=100,000 steps needs 100000 whole batches"):
        too_many = dataclasses.replace(by_steps, pretrain_steps=(100_000,))
        expand.expand(**{**arguments, "study": too_many})
    with pytest.raises(UserError, match="either pretrain_tokens or pretrain_steps"):
        dataclasses.replace(by_steps, pretrain_tokens=(1,))


def test_pretraining_may_read_its_text_again_where_passes_are_allowed(mini_root, tmp_path):
    arguments = load(tmp_path, mini_root)
    study = arguments["study"]
    whole = find_examples(mini.SPAN, mini_root)
    there = whole.tokens(len(whole))
    more = dataclasses.replace(study, pretrain_tokens=(study.pretrain_tokens[-1], 3 * there // 2))
    with pytest.raises(UserError, match=f"has only {there:,} in .* read again by MAX_EPOCHS"):
        expand.expand(**{**arguments, "study": more})
    settings = {**study.pretrain_settings, "MAX_EPOCHS": None}
    twice = dataclasses.replace(more, pretrain_settings=settings)
    runs = expand.expand(**{**arguments, "study": twice})
    assert runs[0].record["steps"] * runs[0].bindings["BATCH_SIZE"] > len(whole)
    once, again = (run.record for run in runs if run.record["kind"] == "finetune")
    assert once["pretrain_tokens"] < there < 3 * there // 2 <= again["pretrain_tokens"]
    assert again["pretrain_unique_tokens"] == there and "pretrain_unique_tokens" not in once


def test_a_run_whose_checkpoint_nobody_wants(mini_root, tmp_path):
    arguments = load(tmp_path, mini_root)
    settings = {**arguments["study"].finetune_settings, "KEEP_CHECKPOINT": False}
    one = dataclasses.replace(
        arguments["study"], finetune_settings=settings, pretrain_tokens=(3_000,)
    )
    assert runner.run_study(**{**arguments, "study": one}) == []
    (finetuned,) = tmp_path.glob("runs/finetune/**/DONE")
    assert list((finetuned.parent / "checkpoints").glob("checkpoint_*")) == []
    assert list(tmp_path.glob("runs/pretrain/*/checkpoints/checkpoint_*"))
    assert runner.run_study(**{**arguments, "study": one}) == []  # still done
