"""Evaluation: every target token once, in any batch size, and text in the order of the file."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from t5scaling.data.examples import find_examples
from t5scaling.errors import UserError
from t5scaling.evaluation import evaluate
from t5scaling.model import decoding, network
from t5scaling.training import sharding, step
from tasks import metrics
from tests import mini


@pytest.fixture(scope="module")
def layout():
    return sharding.make_layout()


@pytest.fixture(scope="module")
def params(layout):
    return step.jit_init(mini.CONFIG, layout)(np.uint32(3)).params


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
        for size in (4, 24)
    ]
    assert values[0]["target_tokens"] == values[1]["target_tokens"]
    assert values[0]["cross_entropy"] == pytest.approx(values[1]["cross_entropy"], rel=1e-6)


def test_predictions_in_the_order_of_the_examples(mini_root, layout, params, tmp_path):
    line = evaluation(mini_root, metrics=(metrics.bleu, metrics.chrf), max_decode_len=6)(
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
    import sentencepiece

    vocabulary = sentencepiece.SentencePieceProcessor(model_file=str(examples.vocabulary))
    for index in (0, 11, 23):
        tokens = decoding.greedy(
            network.Transformer(mini.CONFIG), params, records[index]["inputs"][None],
            max_decode_len=6,
        )  # fmt: skip
        alone = evaluate.detokenize(vocabulary, np.asarray(tokens)[0])
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


def test_first_examples_only(mini_root, layout, params):
    examples = find_examples(mini.TEST, mini_root)
    few = evaluation(mini_root, max_examples=5)
    got = few.cross_entropy(params, mini.CONFIG, layout, examples)
    assert got["target_tokens"] == examples.tokens(5, "targets")


def test_detokenize_stops_at_the_end_and_leaves_sentinels_out(mini_root):
    import sentencepiece

    examples = find_examples(mini.TEST, mini_root)
    vocabulary = sentencepiece.SentencePieceProcessor(model_file=str(examples.vocabulary))
    ids = vocabulary.encode("Guten Tag")
    assert evaluate.detokenize(vocabulary, np.array([*ids, 8099, 0, 1, *ids])) == "Guten Tag"


def test_training_splits_carry_no_text(mini_root, layout, params):
    spec = dataclasses.replace(mini.PAIRS, pack=True)
    with pytest.raises(UserError, match="needs a validation or test split"):
        evaluate.Evaluation(
            spec, mini_root, batch_size=2, max_decode_len=2, max_examples=2
        ).generate(params, mini.CONFIG, layout, find_examples(spec, mini_root))
