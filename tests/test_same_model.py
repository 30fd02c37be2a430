"""A checkpoint is only ever used for the model, and the run, that it is of, and only when whole."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from t5scaling.errors import UserError
from t5scaling.evaluation import evaluate, infer
from t5scaling.model import decoding, stacking
from t5scaling.training import checkpoint, digests, origin, run_directory, sharding, step
from tests import mini

DEEPER = dataclasses.replace(mini.CONFIG, num_encoder_layers=2)
OTHERS = {
    "num_encoder_layers": (2, r"it has no encoder/layers_1/\S+, which this model has"),
    "num_decoder_layers": (2, r"it has no decoder/layers_1/\S+, which this model has"),
    "logits_via_embedding": (True, r"it has decoder/logits_dense/kernel with the shape"),
    "mlp_activations": (("relu",), r"it has no decoder/layers_0/mlp/wi/kernel"),
    "emb_dim": (48, r"its decoder/decoder_norm/scale has the shape \(32,\), this model's \(48,\)"),
    "num_heads": (4, r"its decoder/layers_0/\S+ has the shape \(32, 32\), this model's \(32, 64\)"),
}


@pytest.fixture(scope="module")
def layout():
    return sharding.make_layout({"fsdp": 2})


@pytest.fixture(scope="module")
def run(mini_root, tmp_path_factory):
    """A run, one checkpoint of it named and one its last."""
    folder = tmp_path_factory.mktemp("same") / "run"
    mini.train(folder, mini_root, train_steps=2, checkpoint_steps=(1,))
    return folder


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


def last(folder):
    return folder / "checkpoints/checkpoint_2"


def restore(folder, model, layout):
    return checkpoint.restore_params(str(folder), step.abstract_params(model, layout))


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_another_model_is_refused_by_its_first_difference(run, layout, name):
    value, words = OTHERS[name]
    other = dataclasses.replace(mini.CONFIG, **{name: value})
    with pytest.raises(UserError, match=f"holds another model: {words}"):
        restore(last(run), other, layout)
    with pytest.raises(UserError, match=f"holds another model: its {name} is .*, now it is"):
        run_directory.check_model(run, other)


@pytest.mark.parametrize("scanned", [True, False])
def test_where_only_the_layout_of_layers_differs_they_are_stacked(layout, tmp_path, scanned):
    """And the arrays lie where the model wants them."""
    draw = np.random.default_rng(0)
    drawn = jax.tree.map(
        lambda leaf: jax.device_put(draw.normal(size=leaf.shape).astype(leaf.dtype), leaf.sharding),
        step.abstract_params(DEEPER, layout),
    )
    saves = checkpoint.Checkpoints(tmp_path)
    saves.save(2, {"params": drawn})
    saves.close()
    config = dataclasses.replace(DEEPER, scan_layers=True)
    unrolled = restore(last(tmp_path), DEEPER, layout)
    stacked = restore(last(tmp_path), config, layout)
    with pytest.raises(UserError, match=r"it has encoder/layers_1/\S+ with the shape .*not have"):
        restore(last(tmp_path), mini.CONFIG, layout)
    if scanned:  # from a checkpoint of stacked layers, too
        folder = tmp_path / "stacked"
        saves = checkpoint.Checkpoints(folder)
        saves.save(2, {"params": stacked})
        saves.close()
        stacked, unrolled = (restore(last(folder), c, layout) for c in (config, DEEPER))
    wanted = step.abstract_params(config, layout)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.sharding == b.sharding, stacked, wanted))
    assert jax.tree.all(jax.tree.map(np.array_equal, stacking.unstack_layers(stacked), unrolled))


def test_the_same_shapes_of_another_function_are_refused(run, mini_root, tmp_path):
    """silu for gelu: nothing in the checkpoint itself tells them apart."""
    silu = dataclasses.replace(mini.CONFIG, mlp_activations=("silu", "linear"))
    words = r"its mlp_activations is \('gelu', 'linear'\), now it is \('silu', 'linear'\)"
    with pytest.raises(UserError, match=words):
        mini.train(tmp_path / "a", mini_root, model=silu, initial_checkpoint_path=str(last(run)))
    assert not (tmp_path / "a").exists()
    with pytest.raises(UserError, match=words):
        measure(run, mini_root, silu)
    with pytest.raises(UserError, match=words):
        answer(run, tmp_path, silu)
    other_ways = dataclasses.replace(
        mini.CONFIG, dropout_rate=0.0, dtype="bfloat16", scan_layers=True, remat="full"
    )
    run_directory.check_model(run, other_ways)


def test_eval_and_infer_take_the_model_from_the_run(run, copy, mini_root, tmp_path):
    answer(copy, tmp_path, None)
    measure(copy, mini_root, None)
    (copy / "model.json").unlink()
    with pytest.raises(UserError, match=r"no model.json .* name its gin file"):
        measure(copy, mini_root, None)
    measure(copy, mini_root, mini.CONFIG)  # a run made elsewhere
    assert len(mini.lines(copy, "eval.jsonl")) == 1
    (copy / "model.json").write_text('{"vocab_size": 5}')
    with pytest.raises(UserError, match=r"model.json does not hold a model's settings"):
        measure(copy, mini_root, None)


def test_an_evaluation_is_of_one_dtype(copy, mini_root):
    measure(copy, mini_root, None)
    measure(copy, mini_root, dataclasses.replace(mini.CONFIG, dtype="bfloat16"))
    values = [line["cross_entropy"] for line in mini.lines(copy, "eval.jsonl")]
    assert len(values) == 2 and values[0] != values[1]
    measure(copy, mini_root, dataclasses.replace(mini.CONFIG, remat="full"))  # computes the same
    assert len(mini.lines(copy, "eval.jsonl")) == 2


@pytest.mark.parametrize("part", ["manifest.ocdbt", "_METADATA", "largest", "digests.json"])
def test_a_flipped_bit_is_refused(copy, layout, part):
    folder = last(copy)
    files = [path for path in folder.rglob("*") if path.is_file()]
    if part == "largest":
        damaged = max(files, key=lambda path: path.stat().st_size)
    else:
        damaged = next(path for path in files if path.name == part)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(UserError, match=r"checkpoint_2 is damaged|does not say what arrays"):
        restore(folder, mini.CONFIG, layout)
    saves = checkpoint.Checkpoints(copy)
    state = saves.restore_latest(step.abstract_state(mini.CONFIG, layout))
    saves.close()
    assert int(state.step) == 1
    assert sorted(p.name for p in (copy / "checkpoints").glob("*checkpoint_*")) == [
        "broken-checkpoint_2", "checkpoint_1",
    ]  # fmt: skip


def test_digests_hold_every_file(run):
    folder = last(run)
    noted = json.loads((folder / digests.FILE).read_text())
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert noted.keys() == names - {digests.FILE}
    digests.check(folder)
    assert digests.checkpoint_digest(folder) != digests.checkpoint_digest(
        folder.with_name("checkpoint_1")
    )


@pytest.mark.parametrize("damage", ["empty", "without arrays", "without metadata"])
def test_an_unreadable_newest_checkpoint_leaves_the_one_before(copy, layout, damage, capsys):
    shutil.rmtree(last(copy))
    last(copy).mkdir()
    if damage != "empty":
        (last(copy) / "default").mkdir()
    if damage == "without metadata":
        (last(copy) / "default/_METADATA").write_text("{}")
    words = r"2 is (damaged \(it does not say what arrays|a checkpoint neither of .* nothing)"
    with pytest.raises(UserError, match=words):
        restore(last(copy), mini.CONFIG, layout)
    saves = checkpoint.Checkpoints(copy)
    assert int(saves.restore_latest(step.abstract_state(mini.CONFIG, layout)).step) == 1
    assert "checkpoint_2 cannot be read" in capsys.readouterr().out
    shutil.rmtree(copy / "checkpoints/checkpoint_1")
    (copy / "checkpoints/checkpoint_1").mkdir()
    saves.close()
    saves = checkpoint.Checkpoints(copy)
    with pytest.raises(UserError, match=r"the same command, given again, starts the run from its"):
        saves.restore_latest(step.abstract_state(mini.CONFIG, layout))
    saves.close()
    assert not checkpoint.newest_step(str(copy))


def test_own_checkpoints_of_another_width_are_one_line_and_stay(copy, layout):
    saves = checkpoint.Checkpoints(copy)
    other = dataclasses.replace(mini.CONFIG, emb_dim=48)
    with pytest.raises(UserError, match=r"another model: its params/decoder/decoder_norm/scale"):
        saves.restore_latest(step.abstract_state(other, layout))
    assert saves.steps() == [1, 2]
    saves.close()


# What a run started from


@pytest.fixture(scope="module")
def finetuned(run, mini_root):
    """A run in a folder beside the one that it started from."""
    folder = run.parent / "finetuned"
    mini.train(folder, mini_root, train_steps=2, initial_checkpoint_path=str(last(run)))
    return folder


def test_a_run_goes_on_only_from_the_start_that_it_had(run, finetuned, layout, tmp_path):
    def check(path, folder=finetuned):
        origin.check(str(folder), path and str(path), mini.CONFIG, layout)

    check(last(run))
    for other in (run / "checkpoints/checkpoint_1", None, ""):
        with pytest.raises(UserError, match=r"started from \.\./run/checkpoints/checkpoint_2"):
            check(other)
    with pytest.raises(UserError, match="started from scratch, now INITIAL_CHECKPOINT_PATH is"):
        check(last(run), run)
    with pytest.raises(UserError, match="no checkpoint at"):
        check(tmp_path / "nowhere/checkpoints/checkpoint_2")
    moved = tmp_path / "moved"
    shutil.copytree(run.parent, moved)
    check(last(moved / "run"), moved / "finetuned")
    # Done again, the pretraining has other files, and the same parameters.
    (last(moved / "run") / digests.FILE).unlink()
    check(last(moved / "run"), moved / "finetuned")
    shutil.rmtree(last(moved / "run"))
    check(last(moved / "run"), moved / "finetuned")  # deleted, under the name that it had


@pytest.mark.parametrize("done", [True, False])
def test_another_start_is_refused_by_a_finished_and_by_a_stopped_run(
    run, finetuned, mini_root, tmp_path, done
):
    folder = shutil.copytree(finetuned, tmp_path / "run")
    if not done:
        (folder / "DONE").unlink()
    for other in (str(run / "checkpoints/checkpoint_1"), str(tmp_path / "nowhere/a/b"), None):
        with pytest.raises(UserError, match=r"no checkpoint at|choose another MODEL_DIR"):
            mini.train(folder, mini_root, train_steps=2, initial_checkpoint_path=other)


def test_the_fingerprint_knows_places_and_values_and_no_devices(layout):
    params = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(2, np.float32)}
    sums = origin.sums_of(params)
    rows = sharding.batch_sharding(sharding.make_layout())
    split = {"a": jax.device_put(params["a"].T, rows).T, "b": jax.device_put(params["b"], rows)}
    assert origin.sums_of(split) == sums
    for change in (lambda a: a[::-1], lambda a: a[:, ::-1], lambda a: -a, lambda a: a + 1):
        assert origin.sums_of(params | {"a": change(params["a"])}) != sums
    small = np.nextafter(params["b"], 2, dtype=np.float32)
    assert origin.sums_of(params | {"b": small}) != sums


def measure(folder, root, model):
    evaluate.evaluate_checkpoints(
        model_dir=str(folder),
        model=model,
        evaluators=[evaluate.Evaluation(mini.TEST, root, batch_size=8, max_examples=4)],
        progress=lambda *_: None,
    )


def answer(folder, tmp_path, model):
    (tmp_path / "in.txt").write_text("Press the key twice.\n")
    infer.infer(
        model_dir=str(folder),
        model=model,
        input_file=str(tmp_path / "in.txt"),
        output_file=str(tmp_path / "out.txt"),
        decoder=decoding.Greedy(),
        input_length=16,
        max_decode_len=2,
        batch_size=2,
        progress=lambda *_: None,
    )
