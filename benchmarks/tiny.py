"""The model and the batch that the benchmarks of the train step share.

A T5 1.1 of 1,836,800 parameters at a vocabulary of 4,096, in float32 without dropout; rows of
(128 + 128) tokens.
"""

import os
from typing import Any

import numpy as np

ROWS, LENGTH = 32, 128
POSITIONS = ROWS * 2 * LENGTH  # token positions of a step, inputs and targets
VOCABULARY = 4096
ARCHITECTURE = {
    "emb_dim": 128,
    "num_heads": 4,
    "head_dim": 32,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "mlp_dim": 256,
    "dropout_rate": 0.0,
}


def prepare() -> None:
    """What `run.py` does before JAX starts; and the CPU, whatever else there is."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from t5scaling import compilation

    compilation.prepare()


def model(vocab_size: int = VOCABULARY) -> Any:
    from t5scaling.model import network

    return network.T5Config(vocab_size=vocab_size, **ARCHITECTURE)


def make_batch(vocab_size: int = VOCABULARY, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tokens; every fourth row ends in padding, as real rows do."""
    draw = np.random.default_rng(seed)
    inputs, targets = draw.integers(1, vocab_size, (2, ROWS, LENGTH)).astype(np.int32)
    for row in range(0, ROWS, 4):
        inputs[row, draw.integers(LENGTH // 2, LENGTH) :] = 0
        targets[row, draw.integers(LENGTH // 2, LENGTH) :] = 0
    shifted = np.zeros_like(targets)
    shifted[:, 1:] = targets[:, :-1]
    return {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": shifted,
        "decoder_target_tokens": targets,
        "decoder_loss_weights": (targets > 0).astype(np.float32),
    }
