"""Equality with stock T5X: reference numbers of its 2+2-layer model, float32, matmuls "highest".

The tolerance is 1e-5 relative. For an array it is relative to the array's largest magnitude: the
rounding of a dot product follows the size of its terms, so an element that happens to cancel to
almost zero has no relative precision of its own.

golden/*.npz hold T5X's arrays, in float32, the large ones reduced by `signed_sums`:

- `grad/*`, `param_after_3/*` and `logits` (at the positions that have a loss weight) are sums of 16
  entries. A sum has the tolerance of an entry, so that one wrong entry is enough to fail.
- `param/*` are sums of 1,024 entries, which tell whether the parameters are T5X's. The parameters
  themselves are drawn again, since our initialisation is T5X's: from the same seed it differs by
  at most the last bit of an entry.
- Everything else is whole. `hparams` also has the shapes of T5X's parameters.
"""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from t5scaling.model.decoding import beam_search, greedy
from t5scaling.model.loss import cross_entropy, log_likelihood
from t5scaling.model.network import (
    T5Config,
    Transformer,
    init_params,
    output_kernel,
    param_logical_axes,
)
from t5scaling.model.stacking import unstack_layers
from t5scaling.training.optimizer import adafactor
from t5scaling.training.state import stacked_params

GOLDEN = Path(__file__).parent / "golden"
RELATIVE = 1e-5
SEGMENTS = ("encoder_segment_ids", "decoder_segment_ids")
TERMS = 16  # with 16, the rounding of a sum reaches half of its tolerance
PARAM_TERMS = 1024


def signed_sums(array, terms):
    """Sums of `terms` neighbours in C order, each with a fixed random sign: (size / terms,).

    A wrong entry changes its sum by its own error, and errors that are alike do not cancel. An
    array of fewer than 1,024 entries is returned whole, flat.
    """
    flat = np.asarray(array, np.float64).ravel()
    if flat.size < 1024:
        return flat
    # Not default_rng: NumPy promises only for RandomState that its numbers never change.
    signs = np.where(np.random.RandomState(0).random_sample(flat.size) < 0.5, -1, 1)
    return (signs * flat).reshape(-1, terms).sum(axis=1)


class Training(NamedTuple):
    """What three steps gave; `first` is of the first one."""

    first: dict
    losses: list
    params: dict


class Reference:
    """Stock T5X's numbers, and our model with its parameters: layers unrolled or scanned."""

    def __init__(self, name, scan=False):
        self.arrays = dict(np.load(GOLDEN / f"{name}.npz"))
        self.hparams = json.loads(str(self.arrays["hparams"]))
        fields = dict(self.hparams["config"], dtype="float32")
        del fields["float32_attention_logits"]
        self.config = T5Config(**fields, scan_layers=scan)
        self.model = Transformer(self.config)
        self.apply = jax.jit(self.model.apply)
        self.params = init_params(self.config, jax.random.key(self.hparams["seed"]))
        changed = "JAX, Flax or our initialisation no longer draws what T5X drew: "
        assert_trees_close(self.params, self.sums("param/"), PARAM_TERMS, changed)
        self.batch = {k[6:]: v for k, v in self.arrays.items() if k.startswith("batch/")}

    def sums(self, prefix):
        """The `signed_sums` of a tree, by names like encoder/layers_0/mlp/wo/kernel."""
        return {k[len(prefix) :]: v for k, v in self.arrays.items() if k.startswith(prefix)}

    def loss(self, params):
        segments = {k: self.batch[k] for k in SEGMENTS if k in self.batch}
        inputs = (self.batch["encoder_input_tokens"], self.batch["decoder_input_tokens"])
        hidden = self.model.apply({"params": params}, *inputs, **segments, method="hidden")
        parts = cross_entropy(
            hidden,
            output_kernel(self.config, params),
            self.batch["decoder_target_tokens"],
            self.batch["decoder_loss_weights"],
            tied=self.config.logits_via_embedding,
            chunk_positions=40,  # 96 positions: three chunks, the last one not full
            z_loss=self.hparams["z_loss"],
            label_smoothing=self.hparams["label_smoothing"],
        )
        logits = self.model.apply({"params": params}, hidden, method="logits")
        return parts[0], dict(z_loss=parts[1], weight_sum=parts[2], logits=logits)

    @functools.cached_property
    def trained(self):
        """Three steps of Adafactor, by one program that also gives what a step computes."""
        optimizer = adafactor(stacked_params(self.config))

        @jax.jit
        def train_step(params, state, step):
            (loss, aux), grads = jax.value_and_grad(self.loss, has_aux=True)(params)
            updates, state = optimizer.update(
                grads, state, params, step=step, learning_rate=self.hparams["learning_rate"]
            )
            return optax.apply_updates(params, updates), state, aux | dict(loss=loss, grads=grads)

        params, state, found = self.params, optimizer.init(self.params), []
        for step in range(3):
            params, state, computed = train_step(params, state, step)
            found.append(computed)
        return Training(found[0], [computed["loss"] for computed in found], params)


@functools.cache
def _reference(name, scan=False):
    """Call it where products are exact: see the fixtures."""
    return Reference(name, scan)


@pytest.fixture(
    scope="module",
    params=[("small512_f32", False), ("small512_f32_packed", False), ("small512_f32_packed", True)],
    ids=["unpacked", "packed", "packed-scanned"],
)
def reference(request):
    with jax.default_matmul_precision("highest"):
        yield _reference(*request.param)


@pytest.fixture(scope="module")
def unpacked():
    with jax.default_matmul_precision("highest"):
        yield _reference("small512_f32")


@pytest.fixture(scope="module")
def scanned():
    with jax.default_matmul_precision("highest"):
        yield _reference("small512_f32", scan=True)


def assert_close(actual, expected, name=""):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, name
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=RELATIVE * np.abs(expected).max(), err_msg=name
    )


def assert_sums_close(actual, expected, terms=TERMS, name=""):
    """`actual` is an array, `expected` its `signed_sums`."""
    actual = np.asarray(actual)
    atol = RELATIVE * np.abs(actual).max()
    actual = signed_sums(actual, terms)
    assert actual.shape == expected.shape, name
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol, err_msg=name)


def assert_trees_close(actual, expected, terms=TERMS, message=""):
    """`actual` is a tree, maybe stacked, `expected` maps its names to `signed_sums`."""
    if "layers" in actual["encoder"]:
        actual = unstack_layers(actual)
    actual = flatten_dict(actual, sep="/")
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_sums_close(actual[name], expected[name], terms, message + name)


def test_parameter_names_and_shapes(reference):
    ours = reference.params
    axes = flatten_dict(param_logical_axes(reference.config), sep="/")
    dimensions = {k: v.ndim for k, v in flatten_dict(ours, sep="/").items()}
    assert {k: len(v) for k, v in axes.items()} == dimensions
    if reference.config.scan_layers:
        ours = unstack_layers(ours)
    shapes = {k: list(v.shape) for k, v in flatten_dict(ours, sep="/").items()}
    assert shapes == reference.hparams["shapes"]


def test_logits(reference):
    # T5X masks padded queries too, so logits without weight differ; nothing depends on them.
    real = reference.batch["decoder_loss_weights"] > 0
    logits = np.asarray(reference.trained.first["logits"])
    assert_sums_close(logits[real], reference.arrays["logits"])


def test_loss_and_gradients(reference):
    first = reference.trained.first
    assert_close(first["loss"], reference.arrays["loss"])
    assert_close(first["z_loss"], reference.arrays["z_loss"])
    assert first["weight_sum"] == reference.arrays["weight_sum"]
    assert_trees_close(first["grads"], reference.sums("grad/"))
    assert_close(optax.global_norm(first["grads"]), reference.arrays["grad_norm"])


def test_three_adafactor_steps(reference):
    trained = reference.trained
    np.testing.assert_allclose(trained.losses, reference.arrays["step_loss"], rtol=RELATIVE)
    assert_trees_close(trained.params, reference.sums("param_after_3/"))


def test_log_likelihood(unpacked):
    batch = unpacked.batch
    inputs = (batch["encoder_input_tokens"], batch["decoder_input_tokens"])
    scores = log_likelihood(
        unpacked.apply({"params": unpacked.params}, *inputs),
        batch["decoder_target_tokens"],
        batch["decoder_loss_weights"],
    )
    assert_close(scores, unpacked.arrays["score_batch"])


def _until_end(tokens, eos_id=1):
    """1.0 up to and including each row's end token, then 0.0."""
    ended = tokens == eos_id
    return (np.cumsum(ended, axis=1) - ended == 0).astype(np.float32)


def test_greedy(unpacked):
    expected = unpacked.arrays["greedy"]
    tokens, scores = greedy(
        unpacked.model,
        unpacked.params,
        unpacked.batch["encoder_input_tokens"],
        max_decode_len=expected.shape[1],
    )
    np.testing.assert_array_equal(tokens, expected)
    # Ours are of the model's own distribution, like T5X's scores of given targets.
    targets = np.asarray(tokens)
    batch_scores = log_likelihood(
        unpacked.apply(
            {"params": unpacked.params},
            unpacked.batch["encoder_input_tokens"],
            np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        ),
        targets,
        _until_end(targets),
    )
    assert_close(scores, batch_scores)
    # T5X scores a greedy output under the distribution truncated to one token: log 1.
    np.testing.assert_array_equal(unpacked.arrays["greedy_scores"], 0.0)


def test_greedy_with_scanned_layers(scanned):
    tokens, _ = greedy(
        scanned.model,
        scanned.params,
        scanned.batch["encoder_input_tokens"],
        max_decode_len=scanned.arrays["greedy"].shape[1],
    )
    np.testing.assert_array_equal(tokens, scanned.arrays["greedy"])


def test_beam_search(unpacked):
    expected = unpacked.arrays["beam4"]
    tokens, scores = beam_search(
        unpacked.model,
        unpacked.params,
        unpacked.batch["encoder_input_tokens"],
        max_decode_len=expected.shape[2],
        beam_size=expected.shape[1],
        alpha=unpacked.hparams["beam_alpha"],
    )
    np.testing.assert_array_equal(tokens, expected)
    assert_close(scores, unpacked.arrays["beam4_scores"])


def test_beam_search_with_scanned_layers(scanned):
    expected = scanned.arrays["beam4"]
    tokens, scores = beam_search(
        scanned.model,
        scanned.params,
        scanned.batch["encoder_input_tokens"],
        max_decode_len=expected.shape[2],
        beam_size=expected.shape[1],
        alpha=scanned.hparams["beam_alpha"],
    )
    np.testing.assert_array_equal(tokens, expected)
    assert_close(scores, scanned.arrays["beam4_scores"])
