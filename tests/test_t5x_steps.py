"""Ten steps of stock T5X and of ours, where T5X can be imported."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import t5x_peer

from t5scaling.interop.weights import flatten
from t5scaling.model import network
from t5scaling.training import sharding, step

ARCHITECTURE = {
    "emb_dim": 128, "num_heads": 4, "head_dim": 32, "num_encoder_layers": 1,
    "num_decoder_layers": 1, "mlp_dim": 160, "dropout_rate": 0.0,
}  # fmt: skip
VOCABULARY, ROWS, LENGTH, STEPS = 256, 8, 16, 10  # the kernels are large enough to be factored


def batches(packed):
    """Rows of 4 to 16 tokens; packed, two segments a row."""
    draw = np.random.default_rng(0)
    for _ in range(STEPS):
        inputs, targets = draw.integers(2, VOCABULARY, (2, ROWS, LENGTH)).astype(np.int32)
        first, last = draw.integers(2, 8, ROWS)[:, None], draw.integers(9, 17, ROWS)[:, None]
        places = np.arange(LENGTH)
        segments = np.where(places < last, 1 + (places >= first) * packed, 0).astype(np.int32)
        inputs, targets = inputs * (segments > 0), targets * (segments > 0)
        shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
        starts = np.pad(segments, ((0, 0), (1, 0)))[:, :-1] != segments
        shifted = np.where(starts, 0, shifted)
        batch = {
            "encoder_input_tokens": inputs,
            "decoder_input_tokens": shifted,
            "decoder_target_tokens": targets,
            "decoder_loss_weights": (targets > 0).astype(np.float32),
        }
        of_t5x = {}
        if packed:
            positions = np.where(segments == 2, places - first, places * (segments > 0))
            for side in ("encoder", "decoder"):
                batch[f"{side}_segment_ids"] = segments
                of_t5x[f"{side}_positions"] = positions.astype(np.int32)
        yield batch, batch | of_t5x


@pytest.mark.t5x
@pytest.mark.skipif(not t5x_peer.is_there(), reason="T5X is not installed")
@pytest.mark.parametrize(
    ("packed", "factor"),
    [(False, None), (True, "AVERAGE_PER_SEQUENCE")],
)
def test_ten_steps_of_t5x_and_of_ours_have_equal_losses(packed, factor):
    """From the same parameters on the same batches, to 1e-5 at every step."""
    config = network.T5Config(vocab_size=VOCABULARY, **ARCHITECTURE)
    layout = sharding.make_layout(devices=jax.devices()[:1])
    ours = step.jit_init(config, layout)(np.uint32(0))
    params = {name: np.asarray(leaf) for name, leaf in flatten(ours.params)}
    theirs, their_step = t5x_peer.make(VOCABULARY, ARCHITECTURE, params, factor)
    objective = step.Objective(loss_normalizing_factor=factor)
    our_step = step.jit_train_step(config, objective, layout)
    rate, losses = np.float32(0.05), []
    with jax.default_matmul_precision("highest"):
        for batch, with_positions in batches(packed):
            theirs, (total, z_loss) = their_step(theirs, with_positions, rate)
            ours, (window, _, _) = our_step(
                ours, sharding.put_batch(batch, layout), rate, np.uint32(0), np.bool_(True)
            )
            nats, z_part = float(window.loss), float(window.z_loss)
            if factor is None:  # else T5X's loss is of sequences, ours of tokens all the same
                assert nats + z_part == pytest.approx(float(total), rel=1e-5)
                assert z_part == pytest.approx(float(z_loss), rel=1e-5)
            losses.append(nats / float(window.target_tokens))
    assert losses[-1] < losses[0] - 0.1  # something was learned
    after = {name: np.asarray(leaf) for name, leaf in flatten(jax.device_get(ours.params))}
    for name, leaf in t5x_peer.params_of(theirs).items():
        difference = np.linalg.norm(after[name] - leaf)
        assert difference <= 1e-4 * np.linalg.norm(leaf), name
