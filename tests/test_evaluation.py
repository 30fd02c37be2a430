"""Evaluation: every target token once, in any batch size, and text in the order of the file."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from t5scaling.data.examples import find_examples
from t5scaling.data.vocabulary import Vocabulary
from t5scaling.errors import UserError
from t5scaling.evaluation import comet, evaluate
from t5scaling.model import decoding, network
from t5scaling.training import checkpoint, sharding, step
from tasks import metrics
from tests import mini
from tests.conftest import REPOSITORY
from tests.test_distributed import _launch as launch_two


@pytest.fixture(scope="module")
def layout():
    return sharding.make_layout()


@pytest.fixture(scope="module")
def params(mini_run, layout):
    path = str(mini_run / "checkpoints" / f"{checkpoint.PREFIX}_6")
    return checkpoint.restore_params(path, step.abstract_params(mini.CONFIG, layout))


def evaluation(root, **changes):
    return evaluate.Evaluation(mini.TEST, root, **{"batch_size": 10, **changes})


def test_cross_entropy_is_that_of_one_example_after_the_other(mini_root, layout, params):
    """24 examples in batches of 10 and of buckets: none dropped, padding without weight."""
    examples = find_examples(mini.TEST, mini_root)
    got = evaluation(mini_root).cross_entropy(params, mini.CONFIG, layout, examples)
    apply = jax.jit(network.Transformer(mini.CONFIG).apply)
    total, tokens = 0.0, 0
    for index in range(len(examples)):
        record = examples.read(index)
        inputs, targets = record["inputs"], record["targets"]
        padded = np.zeros((2, 1, 160), np.int32)
        padded[0, 0, : inputs.size] = inputs
        padded[1, 0, 1 : targets.size] = targets[:-1]
        logits = np.asarray(apply({"params": params}, *padded), np.float64)[0, : targets.size]
        log_z = np.log(np.exp(logits - logits.max()).sum(-1)) + logits.max()
        total += (log_z - logits[np.arange(targets.size), targets]).sum()
        tokens += targets.size
    assert got["target_tokens"] == tokens == examples.tokens(len(examples), "targets")
    assert got["cross_entropy"] == pytest.approx(total / tokens, rel=1e-5)
    assert got["truncated"] == 0


def test_batch_size_changes_nothing(mini_root, layout, params):
    examples = find_examples(mini.TEST, mini_root)
    values = [
        evaluation(mini_root, batch_size=size).cross_entropy(params, mini.CONFIG, layout, examples)
        for size in (4, 10)
    ]
    assert values[0]["target_tokens"] == values[1]["target_tokens"]
    assert values[0]["cross_entropy"] == pytest.approx(values[1]["cross_entropy"], rel=1e-6)


def test_the_next_batch_is_dispatched_before_a_loss_is_fetched(
    mini_root, layout, params, monkeypatch
):
    events = []

    class Loss(float):
        def __float__(self):
            events.append("fetch")
            return 1.0

    def eval_step(params, batch):
        events.append("dispatch")
        return Loss(), 1

    monkeypatch.setattr(step, "jit_eval_step", lambda config, layout: eval_step)
    got = evaluation(mini_root).cross_entropy(
        params, mini.CONFIG, layout, find_examples(mini.TEST, mini_root)
    )
    assert got["target_tokens"] == 3 and got["cross_entropy"] == 1.0
    assert events == ["dispatch", "dispatch", "fetch", "dispatch", "fetch", "fetch"]


def test_predictions_in_the_order_of_the_examples(mini_root, layout, params, tmp_path):
    line = evaluation(mini_root, metrics=(metrics.bleu, metrics.chrf), max_decode_len=4)(
        params,
        config=mini.CONFIG,
        layout=layout,
        model_dir=str(tmp_path),
        step=7,
        note=lambda text: None,
    )
    path = tmp_path / "inference_eval/mini_translate_en_de-000007.jsonl"
    outputs = [json.loads(text) for text in path.read_text().splitlines()]
    examples = find_examples(mini.TEST, mini_root)
    records = [examples.read(i) for i in range(len(examples))]
    assert [o["target"] for o in outputs] == [r["targets_pretokenized"] for r in records]
    # The prediction of one example alone is what it got in its batch.
    vocabulary = Vocabulary(examples.vocabulary)
    for index in (0, 11, 23):
        inputs = np.zeros((1, 160), np.int32)
        inputs[0, : len(records[index]["inputs"])] = records[index]["inputs"]
        model = network.Transformer(mini.CONFIG)
        tokens, _ = decoding.greedy(model, params, inputs, max_decode_len=4)
        alone = vocabulary.decode(np.asarray(tokens)[0])
        assert outputs[index]["prediction"] == alone
    targets, predictions = ([o[k] for o in outputs] for k in ("target", "prediction"))
    assert line["bleu"] == metrics.bleu(targets, predictions)["bleu"]
    assert line["chrf_signature"] == metrics.chrf(targets, predictions)["chrf_signature"]


def test_a_step_evaluated_again_replaces_its_line(tmp_path):
    for value in (1.0, 2.0):
        evaluate.write_outputs(str(tmp_path), "task", 5, [{"prediction": "é"}], {"bleu": value})
    evaluate.write_outputs(str(tmp_path), "task", 3, [], {"bleu": 0.5})
    text = (tmp_path / "inference_eval/task-metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines == [{"step": 3, "bleu": 0.5}, {"step": 5, "bleu": 2.0}]
    assert "é" in (tmp_path / "inference_eval/task-000005.jsonl").read_text()


def test_where_nothing_can_be_written_nothing_is_measured(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "inference_eval").write_text("a file where a folder belongs")
    monkeypatch.setattr(evaluate.checkpoint, "choose", lambda *_, **__: [(1, tmp_path)])
    monkeypatch.setattr(evaluate.checkpoint, "check_params", lambda *_: None)
    with pytest.raises(UserError, match=r"cannot make the folder .*inference_eval"):
        evaluate.evaluate_checkpoints(
            model_dir=str(tmp_path), model=mini.CONFIG, evaluators=(), progress=lambda *_: None
        )


def test_first_examples_only(mini_root, layout, params):
    examples = find_examples(mini.TEST, mini_root)
    few = evaluation(mini_root, max_examples=5)
    got = few.cross_entropy(params, mini.CONFIG, layout, examples)
    assert got["target_tokens"] == examples.tokens(5, "targets")


def test_decoding_text_stops_at_the_end_and_keeps_sentinels(mini_root):
    vocabulary = Vocabulary(find_examples(mini.TEST, mini_root).vocabulary)
    ids = vocabulary.encode("Guten Tag")
    assert ids[-1] == vocabulary.eos_id == 1
    assert vocabulary.decode(np.array([*ids[:-1], 8099, 0, 1, *ids])) == "Guten Tag <extra_id_0>"


def test_sentinels_inside_the_model(mini_root, tmp_path):
    """As in mC4's vocabulary, whose last pieces are <extra_id_99> ... <extra_id_0>."""
    plain = Vocabulary(find_examples(mini.TEST, mini_root).vocabulary)
    model = sentencepiece_model_pb2.ModelProto.FromString(plain.path.read_bytes())
    for number in (1, 0):
        model.pieces.add(piece=f"<extra_id_{number}>", type=4)  # user defined
    (tmp_path / "with.model").write_bytes(model.SerializeToString())
    vocabulary = Vocabulary(tmp_path / "with.model")
    ids = vocabulary.encode("Guten Tag")
    assert np.array_equal(ids, plain.encode("Guten Tag"))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "with.model"))
    sentinel = pieces.piece_to_id("<extra_id_0>")
    assert sentinel == pieces.get_piece_size() - 1
    assert vocabulary.decode(np.array([sentinel, *ids])) == "<extra_id_0> Guten Tag"


def test_training_splits_carry_no_text(mini_root, layout, params):
    spec = dataclasses.replace(mini.PAIRS, pack=True)
    with pytest.raises(UserError, match="needs a validation or test split"):
        evaluate.Evaluation(
            spec, mini_root, batch_size=2, max_decode_len=2, max_examples=2
        ).generate(params, mini.CONFIG, layout, find_examples(spec, mini_root))


# Checkpoints of a run


@pytest.fixture(scope="module")
def run(mini_run, tmp_path_factory):
    """A copy of the run, into which measurements are written."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(mini_run, folder)
    return folder


def measure(run, evaluators, **changes):
    evaluate.evaluate_checkpoints(
        model_dir=str(run),
        model=mini.CONFIG,
        evaluators=evaluators,
        **{"progress": lambda *_: None, **changes},
    )
    return mini.lines(run, "eval.jsonl")


def test_all_checkpoints_on_several_tasks(run, materialised_here, mini_root, capsys):
    template = dataclasses.replace(
        evaluation(mini_root, metrics="task", max_decode_len=4),
        dataset=dataclasses.replace(mini.TEST, task=""),
    )
    tasks = ("mini_translate_en_de", "mini_translate_de_en")
    lines = measure(run, evaluate.for_tasks(tasks, template), steps="all")
    assert [(line["step"], line["task"]) for line in lines] == [
        (step_then, task) for step_then in (3, 6) for task in tasks
    ]
    for line in lines:
        assert {"cross_entropy", "bleu", "bleu_signature", "chrf"} <= line.keys()
        assert line["bleu_low"] <= line["bleu"] <= line["bleu_high"]
        assert line["decoder"] == "greedy"
    printed = capsys.readouterr().out
    assert printed.count("step 3 ") == 2 and f"chrf {lines[0]['chrf']:.4g} [" in printed


def test_what_is_measured_is_not_measured_again(run, mini_root, monkeypatch):
    few = evaluation(mini_root, max_examples=5)
    before = measure(run, [few])
    calls = []
    original = evaluate.Evaluation.__call__
    monkeypatch.setattr(
        evaluate.Evaluation, "__call__", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    assert measure(run, [few]) == before and not calls
    after = measure(run, [dataclasses.replace(few, max_examples=6)])
    assert len(calls) == 1 and len(after) == len(before) + 1
    assert [line for line in after if line in before] == before


def test_a_metric_that_cannot_be_had_is_said_and_tried_again(run, mini_root, tmp_path, capsys):
    absent = comet.Comet(folder=str(tmp_path / "nothing"))
    test_set = evaluation(
        mini_root, metrics=(absent, metrics.chrf), max_decode_len=4, max_examples=4
    )
    line = next(line for line in measure(run, [test_set]) if "missing" in line)
    assert line["missing"] == ["comet"] and "chrf" in line and "comet" not in line
    assert capsys.readouterr().err.count("comet-setup") == 1
    measure(run, [test_set])
    assert capsys.readouterr().err.count("comet-setup") == 1
    assert sum("missing" in line for line in mini.lines(run, "eval.jsonl")) == 1


def test_the_decoder_is_recorded(run, mini_root):
    beams = decoding.BeamSearch(beam_size=2)
    lines = measure(
        run,
        [
            evaluation(
                mini_root, metrics=(metrics.chrf,), decoder=beams, max_decode_len=4, max_examples=2
            )
        ],
    )
    assert [line.get("decoder") for line in lines].count(beams.name) == 1


def test_two_processes_evaluate_as_one(run, mini_root, tmp_path):
    """Each decodes its rows, three batches of them, and process 0 writes all answers."""
    for name in ("one", "two"):
        ignored = shutil.ignore_patterns("eval.jsonl", "inference_eval")
        shutil.copytree(run, tmp_path / name, ignore=ignored)
    [one] = measure(tmp_path / "one", [evaluation(mini_root, metrics="task", max_decode_len=4)])
    settings = {
        "MIXTURE_OR_TASK_NAME": "mini_translate_en_de",
        "TASK_MODULES": str(mini.MODULES),
        "EVAL_FEATURE_LENGTHS": str(mini.LONG),
        "EXAMPLES_ROOT": mini_root,
        "EVAL_BATCH_SIZE": 10,
        "MAX_DECODE_LENGTH": 4,
        "MODEL_DIR": str(tmp_path / "two"),
    }
    files = ("tests/mini/model.gin", "gin/runs/eval.gin")
    arguments = [f"--gin_file={REPOSITORY}/{file}" for file in files]
    arguments += [f"--gin.{name}={value}" for name, value in settings.items()]
    for process in launch_two(["eval", *arguments]):
        said, _ = process.communicate(timeout=240)
        assert process.returncode == 0, said[-2000:]
    name = "inference_eval/mini_translate_en_de-000006.jsonl"
    assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()
    [line] = mini.lines(tmp_path / "two", "eval.jsonl")
    assert line["evaluation"] == one["evaluation"]
    assert line["cross_entropy"] == pytest.approx(one["cross_entropy"], rel=1e-6)
    assert line["chrf"] == one["chrf"]
