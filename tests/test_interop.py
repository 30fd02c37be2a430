"""Promises of checkpoints from and to other systems: the same numbers, the same function."""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import tarfile

import flax.serialization
import jax
import numpy as np
import pytest
import safetensors.numpy
from rich.console import Console

from t5scaling import convert, records
from t5scaling.data import vocabulary as vocabulary_module
from t5scaling.data.examples import DataSpec
from t5scaling.data.materialize import materialize
from t5scaling.errors import UserError
from t5scaling.evaluation import evaluate, infer
from t5scaling.interop import huggingface, t5x, tokenizer, weights
from t5scaling.interop.weights import flatten
from t5scaling.model import decoding, network
from t5scaling.training import checkpoint, run_directory, sharding, step
from tests.conftest import REPOSITORY

GOLDEN = os.path.join(REPOSITORY, "tests", "golden")
HUGGINGFACE = os.path.join(GOLDEN, "huggingface")  # random models, written by transformers 5.24
KINDS = ("t5_1_0", "t5_1_1", "mt5", "byt5")
# Written by T5X after three steps: one kind of model and one layout each.
T5X = {"legacy": "v1_1", "orbax": "v1_0"}


@pytest.fixture(scope="module")
def t5x_folder(tmp_path_factory):
    """layout -> a model directory of T5X with checkpoint_3."""
    folder = tmp_path_factory.mktemp("t5x")
    for layout, kind in T5X.items():
        with tarfile.open(f"{GOLDEN}/t5x/{kind}-{layout}.tar.xz") as archive:
            archive.extractall(folder, filter="data")
    return lambda layout: str(folder / layout)


def logits_of(found, batch):
    """(B, T, V) float32."""
    y = batch["decoder_target_tokens"]
    shifted = np.pad(y, ((0, 0), (1, 0)))[:, :-1]
    with jax.default_matmul_precision("highest"):
        arrays = (found.params, batch["encoder_input_tokens"], shifted)
        return np.asarray(_logits(found.config, *arrays))


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params, *tokens):
    return network.Transformer(config).apply({"params": params}, *tokens)


def assert_same_function(found, batch):
    """Logits equal to those of the system that made the model, but at padding."""
    kept = batch["decoder_target_tokens"] > 0
    expected = batch["logits"][kept]
    difference = logits_of(found, batch)[kept] - expected
    assert np.linalg.norm(difference) < 2e-6 * np.linalg.norm(expected)


def assert_same_arrays(found, expected):
    found, expected = dict(flatten(found)), dict(flatten(expected))
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)


@pytest.mark.parametrize("layout", T5X)
def test_t5x_computes_the_same(t5x_folder, layout):
    kind, found = convert.read(t5x_folder(layout))
    assert (kind, found.step, found.left_out) == ("t5x", 3, ())
    stored = np.load(f"{GOLDEN}/t5x/{T5X[layout]}_expected.npz")
    expected = json.loads(str(stored["config"]))
    expected["mlp_activations"] = tuple(expected["mlp_activations"])
    assert expected.items() <= vars(found.config).items()
    assert_same_function(found, {name.removeprefix("batch/"): stored[name] for name in stored})
    assert all(np.abs(leaf).max() > 0 for _, leaf in flatten(found.moments))


@pytest.mark.parametrize("layout", T5X)
@pytest.mark.parametrize("to", convert.FORMATS)
def test_what_is_converted_is_the_same_bit_for_bit(t5x_folder, tmp_path, layout, to):
    _, before = convert.read(t5x_folder(layout))
    there, back = tmp_path / "there", tmp_path / "back"
    convert.convert(t5x_folder(layout), str(there), to=to)
    kind, between = convert.read(str(there))
    convert.convert(str(there), str(back), to="t5x")
    _, after = convert.read(str(back))
    assert kind == to
    for found in (between, after):
        assert found.config == before.config
        assert_same_arrays(found.params, before.params)
    if to == "huggingface":
        assert between.moments is None and after.step == 0
        assert all(not leaf.any() for _, leaf in flatten(after.moments))
    else:
        assert_same_arrays(after.moments, before.moments)
        assert after.step == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "there"]


def test_t5x_is_given_every_leaf_in_one_file(t5x_folder, tmp_path):
    """The tree of T5X's own file, whose arrays are elsewhere."""
    convert.convert(t5x_folder("legacy"), str(tmp_path / "out"), to="t5x")
    names = [path.name for path in (tmp_path / "out" / "checkpoint_3").iterdir()]
    assert names == ["checkpoint"]

    def tree(folder):
        with open(f"{folder}/checkpoint_3/checkpoint", "rb") as file:
            return flax.serialization.msgpack_restore(file.read())

    ours, theirs = tree(tmp_path / "out"), tree(t5x_folder("legacy"))
    assert ours["version"] == theirs["version"] == 3
    there = dict(t5x._flat_specifications(theirs["optimizer"]))
    here = dict(flatten(ours["optimizer"]))
    assert {path: np.shape(leaf) for path, leaf in here.items()} == {
        path: np.shape(leaf) for path, leaf in there.items()
    }


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("layout", T5X)
def test_a_run_starts_from_a_checkpoint_of_t5x_as_it_is(t5x_folder, layout, scan_layers):
    path = os.path.join(t5x_folder(layout), "checkpoint_3")
    _, found = convert.read(path)
    config = network.T5Config(**(vars(found.config) | {"scan_layers": scan_layers}))
    devices = sharding.make_layout({"data": 1, "fsdp": 2})
    abstract = step.abstract_params(config, devices)
    checkpoint.check_params(path, abstract)
    params = checkpoint.restore_params(path, abstract)
    if scan_layers:
        params = checkpoint.stacking.unstack_layers(params)
    assert_same_arrays(jax.device_get(params), found.params)
    wide = network.T5Config(**(vars(config) | {"mlp_dim": 128}))
    with pytest.raises(UserError, match=r"holds another model: its .*mlp.* has the shape"):
        checkpoint.check_params(path, step.abstract_params(wide, devices))


@pytest.mark.parametrize("kind", KINDS)
def test_hugging_face_computes_the_same(kind):
    name, found = convert.read(f"{HUGGINGFACE}/{kind}")
    batch = np.load(f"{HUGGINGFACE}/{kind}/expected.npz")
    assert name == "huggingface"
    assert found.config.logits_via_embedding == (kind == "t5_1_0")
    assert_same_function(found, batch)
    answers, _ = decoding.Greedy()(
        network.Transformer(found.config),
        found.params,
        batch["encoder_input_tokens"],
        max_decode_len=batch["greedy"].shape[1],
    )
    np.testing.assert_array_equal(answers, batch["greedy"])


@pytest.mark.parametrize("kind", KINDS)
def test_hugging_face_is_given_back_what_it_wrote(kind, tmp_path):
    run, back = tmp_path / "run", tmp_path / "back"
    convert.convert(f"{HUGGINGFACE}/{kind}", str(run), to="t5scaling")
    convert.convert(str(run), str(back), to="huggingface")
    before = safetensors.numpy.load_file(f"{HUGGINGFACE}/{kind}/model.safetensors")
    after = safetensors.numpy.load_file(back / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor, err_msg=name)
    settings = json.loads((back / "config.json").read_text())
    theirs = json.loads(pathlib.Path(f"{HUGGINGFACE}/{kind}/config.json").read_text())
    for field in ("d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads",
                  "feed_forward_proj", "vocab_size", "layer_norm_epsilon"):  # fmt: skip
        assert settings[field] == theirs[field], field
    assert settings["tie_word_embeddings"] == ("lm_head.weight" not in before)


def test_a_converted_run_says_what_it_is(tmp_path, vocabulary):
    convert.convert(
        f"{HUGGINGFACE}/t5_1_1", str(tmp_path / "run"), to="t5scaling", vocabulary=vocabulary
    )
    config = run_directory.model_of(tmp_path / "run", None)
    assert (config.emb_dim, config.mlp_activations) == (16, ("gelu", "linear"))
    kept = (tmp_path / "run" / records.VOCABULARY).read_bytes()
    assert kept == pathlib.Path(vocabulary).read_bytes()
    assert json.loads((tmp_path / "run" / "converted.json").read_text())["format"] == "huggingface"


@pytest.fixture
def vocabulary(tmp_path):
    """A SentencePiece model of 48 pieces, as many as the models have rows."""
    import sentencepiece

    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog again and again\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "pieces"), vocab_size=40,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return str(tmp_path / "pieces.model")


def copy_of(kind, tmp_path, **changes):
    folder = tmp_path / kind
    shutil.copytree(f"{HUGGINGFACE}/{kind}", folder)
    settings = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def refused(source, tmp_path, match, **arguments):
    """One line, and nothing left behind."""
    arguments = {"to": "t5x"} | arguments
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(UserError, match=match) as error:
        convert.convert(str(source), str(tmp_path / "target"), **arguments)
    assert "\n" not in str(error.value)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"model_type": "umt5"}, "umT5, which has relative position biases of its own"),
        ({"model_type": "bart"}, "model_type 'bart'; expected one of: t5, mt5"),
        ({"feed_forward_proj": "gated-swish"}, "feed_forward_proj 'gated-swish'; expected"),
        ({"relative_attention_num_buckets": 64}, "relative_attention_num_buckets 64"),
        ({"num_heads": 4}, "has num_heads 4, and the parameters 2"),
        ({"vocab_size": 64}, "has vocab_size 64, and the parameters 48"),
    ],
)
def test_a_model_that_ours_cannot_be_is_refused(tmp_path, changes, match):
    refused(copy_of("t5_1_1", tmp_path, **changes), tmp_path, match)


def test_damaged_files_of_hugging_face_are_refused(tmp_path):
    folder = copy_of("mt5", tmp_path)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])
    refused(folder, tmp_path, r"model\.safetensors cannot be read")
    tensors = safetensors.numpy.load(content)
    (folder / "model.safetensors").write_bytes(
        safetensors.numpy.save({n: t for n, t in tensors.items() if "final_layer_norm" not in n})
    )
    refused(folder, tmp_path, "has no parameter decoder/decoder_norm/scale")
    other = {"encoder.embed_tokens.weight": tensors["shared.weight"] + 1}
    (folder / "model.safetensors").write_bytes(safetensors.numpy.save(tensors | other))
    refused(folder, tmp_path, r"a parameter encoder\.embed_tokens\.weight, which no T5")
    tensors["shared.weight"][0] = np.nan
    (folder / "model.safetensors").write_bytes(safetensors.numpy.save(tensors))
    refused(folder, tmp_path, r"shared\.weight holds values that are not finite")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, tmp_path, r"only pytorch_model\.bin: save it as safetensors")
    (folder / "config.json").write_text("{")
    refused(folder, tmp_path, r"config\.json cannot be read")


def test_copies_of_the_embedding_are_no_output_projection(tmp_path):
    folder = copy_of("t5_1_0", tmp_path)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    for name in ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        tensors[name] = tensors["shared.weight"]
    (folder / "model.safetensors").write_bytes(safetensors.numpy.save(tensors))
    assert_same_arrays(
        huggingface.read(str(folder)).params, huggingface.read(f"{HUGGINGFACE}/t5_1_0").params
    )


def test_damaged_checkpoints_of_t5x_are_refused(t5x_folder, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(os.path.join(t5x_folder("legacy"), "checkpoint_3"), folder)
    shutil.rmtree(folder / "target.encoder.encoder_norm.scale")
    refused(folder, tmp_path, r"target\.encoder\.encoder_norm\.scale cannot be read")
    content = (folder / "checkpoint").read_bytes()
    for damaged in (content[:1000], b"", b"\x00" * 100):
        (folder / "checkpoint").write_bytes(damaged)
        refused(folder, tmp_path, "/checkpoint is no")
    shutil.rmtree(folder)
    shutil.copytree(os.path.join(t5x_folder("orbax"), "checkpoint_3"), folder)
    (folder / "state" / "manifest.ocdbt").write_bytes(b"")
    refused(folder, tmp_path, "cannot be read")


def test_what_cannot_be_converted_is_named(tmp_path, t5x_folder, vocabulary):
    refused(tmp_path / "nothing", tmp_path, "there is no .*nothing")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path, "holds no model that can be converted.*it has nothing")
    refused(t5x_folder("legacy"), tmp_path, "no checkpoint of step 4; there: 3", step=4)
    refused(t5x_folder("legacy"), tmp_path, "--to is 'torch'; expected one of", to="torch")
    (tmp_path / "no.model").write_text("no model")
    refused(
        f"{HUGGINGFACE}/mt5",
        tmp_path,
        "is not a SentencePiece model",
        vocabulary=f"{tmp_path}/no.model",
    )
    nowhere = f"{tmp_path}/nowhere.model"
    refused(f"{HUGGINGFACE}/mt5", tmp_path, f"there is no {nowhere}", vocabulary=nowhere)
    (tmp_path / "x[1]").mkdir()
    with pytest.raises(UserError, match=r"target='.*x\[1\]/run': .* taken for a pattern"):
        convert.convert(f"{HUGGINGFACE}/mt5", f"{tmp_path}/x[1]/run", to="t5scaling")
    (tmp_path / "target").mkdir()
    refused(t5x_folder("legacy"), tmp_path, "target exists; convert does not overwrite")


def test_moments_of_another_shape_stay_behind(t5x_folder):
    """T5X can factor what is not factored here."""
    found = t5x.read(os.path.join(t5x_folder("legacy"), "checkpoint_3"))
    moments = dict(flatten(found.moments))
    del moments["token_embedder/embedding/v"]
    moments |= {
        "token_embedder/embedding/v_row": np.ones(32, np.float32),
        "token_embedder/embedding/v_col": np.ones(256, np.float32),
    }
    changed = weights.Weights(found.config, found.params, 3, weights.unflatten(moments))
    kept = convert._with_fitting_moments(changed)
    assert kept.moments is None
    assert kept.left_out == (
        "the optimizer's moments: token_embedder/embedding/v has none, expected (256, 32)",
    )


@pytest.fixture(scope="module")
def byte_spec(tmp_path_factory):
    """(spec, root) of a test set over bytes, which the models of 512 tokens can read."""
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "test.tsv").write_text("open\tauf\nThe file\tDie Datei\n", encoding="utf-8")
    definition = {
        "kind": "translation", "vocabulary": "bytes", "format": "tsv", "source": 0, "target": 1,
        "prompt": "", "files": {"test": str(folder / "test.tsv")},
    }  # fmt: skip
    lengths = {"inputs": 12, "targets": 10}
    spec = DataSpec("pairs", "test", lengths, definitions={"pairs": definition})
    materialize(spec, folder / "examples", Console(quiet=True))
    return spec, str(folder / "examples")


def test_eval_takes_a_checkpoint_of_t5x_as_it_is(t5x_folder, byte_spec, tmp_path):
    """Its folder or the one around it; and measures what is measured after a conversion."""
    spec, root = byte_spec
    source, out = t5x_folder("orbax"), str(tmp_path / "out")
    before = sorted(os.listdir(source))
    convert.convert(source, str(tmp_path / "run"), to="t5scaling", vocabulary="bytes")
    config = run_directory.model_of(tmp_path / "run", None)

    def measure(model_dir, **changes):
        arguments = {"model": config, "evaluators": [evaluate.Evaluation(spec, root, 2)]}
        evaluate.evaluate_checkpoints(
            model_dir=str(model_dir), progress=lambda *_: None, **(arguments | changes)
        )

    with pytest.raises(UserError, match=r"set EVAL_OUTPUT_DIR"):
        measure(source)
    with pytest.raises(UserError, match=r"no model.json .* name its gin file"):
        measure(source, model=None, output_dir=out)
    with pytest.raises(UserError, match=r"has no checkpoint of step 4; there: 3"):
        measure(source, steps=[4], output_dir=out)
    elsewhere = [evaluate.Evaluation(dataclasses.replace(spec, task="none"), "nowhere")]
    with pytest.raises(UserError, match=r"holds another model: its .*mlp.* has the shape"):
        wider = dataclasses.replace(config, mlp_dim=96)
        measure(source, model=wider, output_dir=out, evaluators=elsewhere)
    assert not os.path.exists(out)
    measure(tmp_path / "run")
    measure(source, output_dir=out)
    measure(f"{source}/checkpoint_3", output_dir=str(tmp_path / "more"))
    assert sorted(os.listdir(source)) == before
    expected, *found = [
        json.loads((tmp_path / name / "eval.jsonl").read_text()) for name in ("run", "out", "more")
    ]
    for line in found:
        assert line["step"] == 3 and line["target_tokens"] == expected["target_tokens"] == 14
        assert line["cross_entropy"] == expected["cross_entropy"]


def test_infer_takes_a_checkpoint_of_t5x_as_it_is(t5x_folder, tmp_path):
    source = t5x_folder("orbax")
    convert.convert(source, str(tmp_path / "run"), to="t5scaling", vocabulary="bytes")
    (tmp_path / "in").write_text("open\nThe file\n")
    config = run_directory.model_of(tmp_path / "run", None)

    def answer(model_dir, name, **changes):
        infer.infer(
            model_dir=str(model_dir), input_file=str(tmp_path / "in"), step="last",
            output_file=str(tmp_path / name), decoder=decoding.Greedy(), model=config,
            input_length=12, max_decode_len=6, batch_size=2, **changes,
        )  # fmt: skip
        return (tmp_path / name).read_text()

    with pytest.raises(UserError, match=r"has no vocabulary\.model; VOCABULARY_FILE names"):
        answer(source, "a.jsonl")
    corpus = os.path.join(REPOSITORY, "tasks", "corpus", "spm8k.model")
    with pytest.raises(UserError, match=r"8,100 tokens, but .* its embedding has 512 rows"):
        answer(source, "a.jsonl", vocabulary_file=corpus)
    expected = answer(tmp_path / "run", "expected.jsonl")
    assert answer(source, "a.jsonl", vocabulary_file="bytes") == expected
    assert answer(f"{source}/checkpoint_3", "b.jsonl", vocabulary_file="bytes") == expected
    with pytest.raises(UserError, match=r"has another vocabulary of its own"):
        answer(tmp_path / "run", "c.jsonl", vocabulary_file=corpus)


def test_what_is_no_model_is_named(t5x_folder, tmp_path):
    """Where a run or a directory of T5X is expected."""
    for name, match in (
        (f"{HUGGINGFACE}/mt5", "is a model of Hugging Face: run.py convert makes"),
        (str(tmp_path), r"no checkpoints, of this program or of T5X; there: nothing"),
        (f"{tmp_path}/x", "there is no .*/x"),
        (f"{GOLDEN}/t5x", r"there: v1_0-orbax.tar.xz, v1_0_expected.npz, "),
    ):
        with pytest.raises(UserError, match=match):
            checkpoint.choose(name, "last", of_t5x=True)
    assert checkpoint.newest_step(str(tmp_path)) == 0
    config = network.T5Config(
        vocab_size=8, emb_dim=8, num_heads=1, head_dim=8, num_encoder_layers=1,
        num_decoder_layers=1, mlp_dim=8,
    )  # fmt: skip
    abstract = step.abstract_params(config, sharding.make_layout())
    for name, match in (
        (
            t5x_folder("orbax"),
            "orbax is a checkpoint neither of this program nor of T5X; there: checkp",
        ),
        (f"{HUGGINGFACE}/mt5", "is a model of Hugging Face"),
    ):
        with pytest.raises(UserError, match=match):
            checkpoint.check_params(name, abstract)


def scanned(found, changed=0.0):
    """The tree of scalable_t5: layers along the second axis, and their biases too; heads apart."""
    target = {}
    config = found.config
    heads = (config.num_heads, config.head_dim)
    for name, leaf in flatten(found.params):
        stack, layer, rest = (*name.split("/", 2), "")[:3]
        if name.endswith("relpos_bias/rel_embedding"):
            target[f"{stack}/{stack}/{layer}/{rest}"] = np.stack([leaf, leaf + changed], axis=1)
        elif layer.startswith("layers_"):
            if "attention/" in rest:
                out = rest.endswith("out/kernel")
                leaf = leaf.reshape((*heads, -1) if out else (-1, *heads))
            target[f"{stack}/{stack}/{rest}"] = np.stack([leaf, 2 * leaf], axis=1)
        else:
            target[name] = leaf
    return weights.unflatten(target)


def test_scanned_layers_of_t5x_are_read_one_by_one(t5x_folder, tmp_path):
    _, found = convert.read(t5x_folder("legacy"))
    assert found.config.num_encoder_layers == 1  # the second one is made here

    def write(target):
        optimizer = {"target": target, "state": {"step": np.int32(7), "param_states": {}}}
        content = {"version": 3, "optimizer": optimizer}
        (tmp_path / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(content))

    write(scanned(found))
    _, both = convert.read(str(tmp_path))
    assert (both.step, both.config.num_decoder_layers, both.moments) == (7, 2, None)
    assert t5x.shapes(str(tmp_path)) == weights.shapes_of(both.params)
    assert checkpoint.choose(str(tmp_path), "last", of_t5x=True) == [(7, str(tmp_path))]
    before = dict(flatten(found.params))
    for name, leaf in flatten(both.params):
        times = 2 if "/layers_1/" in name else 1
        np.testing.assert_array_equal(leaf, times * before[name.replace("layers_1", "layers_0")])
    write(scanned(found, changed=0.5))
    with pytest.raises(UserError, match=r"biases of its own in every layer of the \w+, as umT5"):
        convert.read(str(tmp_path))


def test_bytes_are_a_vocabulary_for_a_conversion(tmp_path):
    """ByT5's tokenizer of transformers needs no file but its name."""
    convert.convert(f"{HUGGINGFACE}/byt5", str(tmp_path / "none"), to="t5x")
    source = str(tmp_path / "none")
    with pytest.raises(UserError, match=r"has 259 pieces, more than the embedding's 48 rows"):
        convert.convert(source, str(tmp_path / "small"), to="huggingface", vocabulary="bytes")
    _, found = convert.read(source)
    wide = np.resize(found.params["token_embedder"]["embedding"], (384, 16))
    params = found.params | {"token_embedder": {"embedding": wide}}
    params["decoder"]["logits_dense"]["kernel"] = wide.T.copy()
    config = weights.architecture(weights.shapes_of(params), "here")
    huggingface.write(
        str(tmp_path / "byt5"), weights.Weights(config, params, vocabulary=vocabulary_module.BYTES)
    )
    there = {path.name for path in (tmp_path / "byt5").iterdir()}
    assert there == {"config.json", "model.safetensors", "tokenizer_config.json"}
    convert.convert(str(tmp_path / "byt5"), str(tmp_path / "run"), to="t5scaling")
    found = run_directory.vocabulary_of(str(tmp_path / "run"), None, 384)
    assert found.size() == 384 and found.decode(found.encode("\u00e9")) == "\u00e9"
    with pytest.raises(UserError, match=r"there is no .*nothing; expected a SentencePiece"):
        convert.convert(
            source, str(tmp_path / "x"), to="t5scaling", vocabulary=f"{tmp_path}/nothing"
        )


TEXTS = (
    "The file could not be opened.",
    "Zwei Häuser, drei Bäume – „gut“.",
    "  two  spaces ",
    "日本語 😀 x",
    "ﬁ ½ ① \t tab",
    "fill <extra_id_0> and <extra_id_1>",
    "",
)


def test_the_tokenizer_for_hugging_face_gives_our_tokens():
    import tokenizers

    path = os.path.join(REPOSITORY, "tasks", "corpus", "spm8k.model")
    content = pathlib.Path(path).read_bytes()
    theirs = tokenizers.Tokenizer.from_str(tokenizer.files(content)[tokenizer.TOKENIZER])
    ours = vocabulary_module.Vocabulary(path)
    for text in TEXTS:
        ids = theirs.encode(text).ids
        assert ids == ours.encode(text).tolist(), text
        # (it puts no space before a sentinel)
        again = theirs.decode(ids[:-1], skip_special_tokens=False)
        assert again.replace(" ", "") == ours.decode(ids).replace(" ", "")
    assert theirs.token_to_id("<extra_id_0>") == ours.size() - 1
