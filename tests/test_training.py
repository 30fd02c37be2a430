"""Promises of the training loop: reproducible, resumable, honest about what it cannot do."""

import contextlib
import dataclasses
import errno
import functools
import io
import json
import os
import resource
import shutil
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import sentencepiece

from t5scaling.data.examples import find_examples
from t5scaling.errors import Stopped, UserError
from t5scaling.evaluation import evaluate
from t5scaling.training import checkpoint, loop, optimizer, run_directory, state, step, tracker
from tests import mini


@pytest.fixture(scope="module")
def reference(mini_root, tmp_path_factory):
    """A run never stopped."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    mini.train(folder, mini_root, checkpoint_steps=(4, 8))
    return folder


@functools.cache
def at_the_end(reference):
    return mini.parameters(reference, 12)


def test_learns_and_logs_every_line(reference, mini_root):
    lines = mini.lines(reference)
    assert [line["step"] for line in lines] == [5, 10, 12]
    losses = [line["loss"] for line in lines]
    assert losses[0] > losses[1] > losses[2] and losses[0] - losses[2] > 0.3
    assert lines[0]["loss"] < np.log(8192) + 2
    examples = find_examples(mini.SPAN, mini_root)
    for line in lines:
        seen = line["examples_seen"]
        assert seen == 8 * line["step"]
        assert line["tokens_seen"] == examples.tokens(seen, "inputs") + examples.tokens(
            seen, "targets"
        )
    steps = [line["step"] for line in mini.lines(reference, "timing.jsonl")]
    assert steps == [5, 10, 12, 12]
    assert os.path.exists(reference / "DONE")
    assert list((reference / "tensorboard").iterdir())


def test_named_checkpoints_stay(reference):
    names = sorted(path.name for path in (reference / "checkpoints").iterdir() if path.is_dir())
    assert names == ["checkpoint_12", "checkpoint_4", "checkpoint_8"]


def test_same_command_gives_the_same_bytes(reference, mini_root, tmp_path):
    mini.train(tmp_path / "again", mini_root, checkpoint_steps=(4, 8))
    assert (tmp_path / "again/metrics.jsonl").read_bytes() == (
        reference / "metrics.jsonl"
    ).read_bytes()
    assert mini.same(mini.parameters(tmp_path / "again", 12), at_the_end(reference))


def test_another_seed_gives_other_parameters(reference, mini_root, tmp_path):
    mini.train(tmp_path / "other", mini_root, seed=1)
    assert not mini.same(mini.parameters(tmp_path / "other", 12), at_the_end(reference))


def test_stopped_by_a_signal_goes_on_as_if_never_stopped(reference, mini_root, tmp_path):
    """Step 7 lies between two lines of metrics: the sums must come back too."""

    def stop(done, total, note):
        if done == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="run the same command") as stopped:
        mini.train(tmp_path / "run", mini_root, checkpoint_steps=(4, 8), progress=stop)
    assert stopped.value.signal_number == signal.SIGTERM
    assert not os.path.exists(tmp_path / "run/DONE")
    assert max(checkpoint_steps(tmp_path / "run")) < 12
    mini.train(tmp_path / "run", mini_root, checkpoint_steps=(4, 8))
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (
        reference / "metrics.jsonl"
    ).read_bytes()
    assert mini.same(mini.parameters(tmp_path / "run", 12), at_the_end(reference))


def test_a_damaged_last_checkpoint_costs_only_the_steps_since_the_one_before(
    reference, mini_root, tmp_path, capsys
):
    folder = copy_unfinished(reference, tmp_path)
    damage(folder / "checkpoints/checkpoint_12")
    mini.train(folder, mini_root, checkpoint_steps=(4, 8))
    said = capsys.readouterr().out
    assert (
        "checkpoint_12 cannot be read" in said
        and "instead of" in said
        and "going back to the one before" in said
    )
    assert (folder / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()
    assert mini.same(mini.parameters(folder, 12), at_the_end(reference))


def test_a_damaged_checkpoint_without_noted_digests(reference, mini_root, tmp_path, capsys):
    """Killed right after the save, before the digests were noted: reading it tells."""
    folder = copy_unfinished(reference, tmp_path)
    damage(folder / "checkpoints/checkpoint_12")
    (folder / "checkpoints/checkpoint_12/digests.json").unlink()
    mini.train(folder, mini_root, checkpoint_steps=(4, 8))
    assert "going back to the one before" in capsys.readouterr().out
    assert mini.same(mini.parameters(folder, 12), at_the_end(reference))


def test_own_checkpoint_before_the_given_one(reference, mini_root, tmp_path):
    """A preempted finetune must not start again from the pretrained weights."""
    pretrained = str(reference / "checkpoints/checkpoint_12")
    folder = tmp_path / "finetune"
    mini.train(folder, mini_root, initial_checkpoint_path=pretrained, train_steps=6)
    (folder / "DONE").unlink()
    starts = []
    mini.train(
        folder,
        mini_root,
        initial_checkpoint_path=pretrained,
        train_steps=8,
        progress=lambda done, *_: starts.append(done),
    )
    assert next(done for done in starts if done) == 7
    for path in (folder / "checkpoints").iterdir():
        damage(path)
    (folder / "DONE").unlink()
    with pytest.raises(UserError, match=r"none of the checkpoints .* can be read"):
        mini.train(folder, mini_root, initial_checkpoint_path=pretrained, train_steps=8)


def test_starts_from_the_given_parameters_with_a_fresh_optimizer(reference, tmp_path):
    layout = step.sharding.make_layout()
    checkpoints = checkpoint.Checkpoints(tmp_path / "new")
    path = str(reference / "checkpoints/checkpoint_12")
    started = loop.start_state(mini.CONFIG, layout, 0, checkpoints, path)
    wanted = at_the_end(reference)
    got = {
        jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree.leaves_with_path(started.params)
    }
    assert mini.same(got, wanted)
    assert int(started.step) == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(started.opt_state))
    checkpoints.close()


def test_a_missing_initial_checkpoint_is_one_line(reference, mini_root, tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint at .*; there: .*checkpoint_12"):
        wrong = str(reference / "checkpoints/checkpoint_99")
        mini.train(tmp_path / "a", mini_root, initial_checkpoint_path=wrong)
    assert not (tmp_path / "a").exists()


def test_a_checkpoint_of_another_vocabulary_is_refused(reference, mini_root, tmp_path):
    pretrained = shutil.copytree(reference, tmp_path / "pretrained")
    here = find_examples(mini.SPAN, mini_root).vocabulary
    assert (pretrained / "vocabulary.model").read_bytes() == here.read_bytes()
    other = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a few words of text"] * 9),
        vocab_size=14,
        model_writer=other,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        minloglevel=2,
    )  # fmt: skip
    (pretrained / "vocabulary.model").write_bytes(other.getvalue())
    checkpoint_12 = str(pretrained / "checkpoints/checkpoint_12")
    with pytest.raises(UserError, match=r"were made with another vocabulary .* than the model in"):
        mini.train(tmp_path / "run", mini_root, initial_checkpoint_path=checkpoint_12)
    test_set = evaluate.Evaluation(mini.TEST, mini_root, batch_size=8)
    with pytest.raises(UserError, match="were made with another vocabulary"):
        evaluate.evaluate_checkpoints(
            model_dir=str(pretrained), model=mini.CONFIG, evaluators=[test_set],
            progress=lambda *_: None,
        )  # fmt: skip
    small = dataclasses.replace(mini.CONFIG, vocab_size=8000)
    with pytest.raises(UserError, match="of 8,100 tokens, more than the model's 8,000"):
        mini.train(tmp_path / "run", mini_root, model=small)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_names_its_step_and_the_last_good_checkpoint(mini_root, tmp_path):
    def explode(at):
        return 0.01 if at < 6 else float("inf")

    with pytest.raises(UserError, match="not finite at step 8; the last good checkpoint is step 4"):
        mini.train(
            tmp_path, mini_root, checkpoint_steps=(4,), learning_rate_schedule=explode, log_every=3
        )
    assert checkpoint_steps(tmp_path) == [4]
    assert not (tmp_path / "DONE").exists()


def test_an_unexpected_error_leaves_its_traceback(tmp_path):
    for error, has_traceback in ((UserError("too many"), False), (ValueError("a bug"), True)):
        run_directory.fail(str(tmp_path), error)
        record = json.loads((tmp_path / "FAILED").read_text())
        assert record["reason"] == str(error)
        assert ("traceback" in record) is has_traceback


def test_repetition_only_where_it_is_allowed(mini_root, tmp_path):
    with pytest.raises(UserError, match="allow repetition by MAX_EPOCHS"):
        mini.train(tmp_path, mini_root, train_steps=1000)
    with pytest.raises(UserError, match=r"only 7\d,\d+"):
        mini.train(tmp_path, mini_root, pool=10**9)
    assert not list(tmp_path.iterdir())


def test_batch_size_must_fit_the_devices(mini_root, tmp_path):
    with pytest.raises(UserError, match="BATCH_SIZE=7 cannot be split over 2 devices"):
        mini.train(tmp_path, mini_root, batch_size=7)


def test_full_disk_keeps_the_checkpoint_before(reference, mini_root, tmp_path, monkeypatch):
    save = ocp.CheckpointManager.save

    def full(self, at, *args, **kwargs):
        if at > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(self, at, *args, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(UserError, match=r"disk full .* the same command again"):
        mini.train(tmp_path / "run", mini_root, checkpoint_steps=(4, 8))
    monkeypatch.undo()
    mini.train(tmp_path / "run", mini_root, checkpoint_steps=(4, 8))
    assert mini.same(mini.parameters(tmp_path / "run", 12), at_the_end(reference))


@contextlib.contextmanager
def no_large_files_after_step_4():
    """What the system refuses is refused where Orbax writes: in its own threads, after `save`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = ocp.CheckpointManager.save

    def limited(self, at, *args, **kwargs):
        if at > 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        return save(self, at, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", limited)
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


NOT_SAVED = "File too large while saving to .*; mend that and run the same command again"


def test_a_save_that_fails_in_the_background_is_found_without_waiting(tmp_path):
    fresh = step.jit_init(mini.CONFIG, step.sharding.make_layout())(np.uint32(0))
    checkpoints = checkpoint.Checkpoints(str(tmp_path))
    with no_large_files_after_step_4(), pytest.raises(UserError, match=NOT_SAVED):
        for at in (4, 8):
            checkpoints.save(at, fresh)
        for _ in range(600):
            checkpoints.check()
            time.sleep(0.05)
    checkpoints.close()
    assert checkpoint.newest_step(str(tmp_path)) == 4


def test_a_save_that_fails_in_the_background_stops_the_run(reference, mini_root, tmp_path):
    settings = {"checkpoint_steps": (4, 8), "log_every": 1}
    with no_large_files_after_step_4(), pytest.raises(UserError, match=NOT_SAVED):
        mini.train(tmp_path / "run", mini_root, **settings)
    assert not (tmp_path / "run/DONE").exists()
    mini.train(tmp_path / "run", mini_root, **settings)
    assert mini.same(mini.parameters(tmp_path / "run", 12), at_the_end(reference))


def test_a_signal_during_the_last_evaluation_stops_what_would_follow(mini_root, tmp_path):
    evaluation = evaluate.Evaluation(mini.VALIDATION, mini_root, batch_size=8)

    def stop(done, total, note):
        if note == "validation cross-entropy":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="is done"):
        mini.train(tmp_path, mini_root, train_steps=2, evaluators=(evaluation,), progress=stop)
    assert (tmp_path / "DONE").exists()
    assert mini.lines(tmp_path)[-1]["split"] == "validation"


def test_token_counter_counts_past_int32():
    seen = np.array([0, 0], np.int32)
    for _ in range(5):
        seen = state.add_tokens(seen, np.int32(2**24 - 3))
    assert state.total_tokens(seen) == 5 * (2**24 - 3)
    huge = state.add_tokens(np.array([2**20, 2**24 - 1], np.int32), np.int32(7))
    assert state.total_tokens(huge) == (2**20 << 24) + 2**24 - 1 + 7


def test_tracker_drops_what_came_after_the_resumed_step(tmp_path):
    log = tracker.Tracker(str(tmp_path), 0)
    for at in (5, 10, 15):
        log.metrics({"step": at, "split": "train", "task": "t", "loss": 1.0})
        log.metrics({"step": at, "split": "test", "task": "t", "cross_entropy": 1.0})
        log.timing({"step": at, "wall_s": float(at)})
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 20, "spl')  # a kill in the middle of a line
    log = tracker.Tracker(str(tmp_path), 10)
    log.close()
    kept = [(line["step"], line["split"]) for line in mini.lines(tmp_path)]
    # Evaluation at the resumed step is done again, so its old lines go.
    assert kept == [(5, "train"), (5, "test"), (10, "train")]
    assert log.spent(1)["wall_s"] >= 10.0


def test_devices_that_processes_share_count_once(tmp_path, monkeypatch):
    """And a run that goes on elsewhere counts each launch on the devices that it had."""
    now = [100.0]
    monkeypatch.setattr(tracker.time, "monotonic", lambda: now[0])
    log = tracker.Tracker(str(tmp_path), 0)
    now[0] += 10
    assert log.spent(4) == {"wall_s": 10.0, "device_s": 40.0}
    log.timing({"step": 5, **log.spent(4)})
    log.close()
    monkeypatch.setenv(tracker.SHARED_BY, "14")
    log = tracker.Tracker(str(tmp_path), 5)
    now[0] += 28
    assert log.spent(1) == {"wall_s": 38.0, "device_s": 42.0}
    log.close()


def test_schedules_are_read_at_the_step_about_to_be_done(reference, mini_root, tmp_path):
    rate = optimizer.inverse_square_root(1.0, warmup_steps=4)
    mini.train(tmp_path, mini_root, learning_rate_schedule=rate)
    rates = {line["step"]: line["learning_rate"] for line in mini.lines(tmp_path)}
    assert rates == {5: rate(4), 10: rate(9), 12: rate(11)}


def checkpoint_steps(folder):
    return sorted(int(p.name.split("_")[1]) for p in (folder / "checkpoints").glob("checkpoint_*"))


def copy_unfinished(run, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    (folder / "DONE").unlink()
    return folder


def damage(folder):
    """Cuts every data file of a checkpoint in half."""
    cut = 0
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > 1000 and "/d/" in str(path):
            os.truncate(path, path.stat().st_size // 2)
            cut += 1
    assert cut, f"nothing to damage in {folder}"
