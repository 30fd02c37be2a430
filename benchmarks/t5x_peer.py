"""Stock T5X's train step on a model of ours (github.com/google-research/t5x, commit cc342d4).

T5X is on no package index. It is found where PYTHONPATH names it and what it imports, or in the
environment that is active.
"""

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

MISSING = (
    "T5X cannot be imported: it is on no package index; clone github.com/google-research/t5x and "
    "name the clone, and what it imports, in PYTHONPATH"
)


def is_there() -> bool:
    return importlib.util.find_spec("t5x") is not None


def make(
    vocab_size: int,
    architecture: Mapping[str, Any],
    params: Mapping[str, np.ndarray],
    loss_normalizing_factor: str | None = None,
) -> tuple[Any, Callable]:
    """-> (train state, step), T5X's own.

    `params` by path, {"encoder/encoder_norm/scale": ...}; `architecture` as tiny.py's.
    step(state, batch, learning rate) -> (next state, (loss sum, its z-loss part)); it uses up the
    state.
    """
    import flax
    import jax
    import seqio
    from t5x import adafactor, models, train_state, trainer
    from t5x.examples.t5 import network

    config = network.T5Config(
        vocab_size=vocab_size, dtype="float32", mlp_activations=("gelu", "linear"), **architecture
    )
    vocabulary = seqio.PassThroughVocabulary(vocab_size)
    rules = adafactor.standard_logical_factor_rules()
    model = models.EncoderDecoderModel(
        network.Transformer(config),
        vocabulary,
        vocabulary,
        adafactor.Adafactor(decay_rate=0.8, logical_factor_rules=rules),
        z_loss=1e-4,
        loss_normalizing_factor=loss_normalizing_factor,
    )
    shapes = dict.fromkeys(("encoder_input_tokens", "decoder_input_tokens"), (1, 8))
    shapes["decoder_target_tokens"] = (1, 8)
    # Of the variables that T5X would draw only the names of the axes are wanted.
    drawn = jax.eval_shape(lambda key: model.get_initial_variables(key, shapes), jax.random.key(0))
    drawn = flax.core.unfreeze(drawn)
    wanted = flax.traverse_util.flatten_dict(drawn["params"], sep="/")
    if different := sorted(set(wanted) ^ set(params)):
        raise ValueError(f"parameters that only one model has: {different}")
    own = flax.traverse_util.unflatten_dict(
        {name: jax.numpy.asarray(value) for name, value in params.items()}, sep="/"
    )
    variables = flax.core.freeze({"params": own, "params_axes": drawn["params_axes"]})
    state = train_state.FlaxOptimTrainState.create(model.optimizer_def, variables)

    def step(state: Any, batch: Mapping[str, Any], learning_rate: Any) -> tuple[Any, tuple]:
        after, metrics = trainer.train_with_lr(
            state, batch, learning_rate, jax.random.PRNGKey(0), model=model, num_microbatches=None
        )
        return after, (metrics["loss"].total, metrics["z_loss"].total)

    return state, jax.jit(step, donate_argnums=0)


def params_of(state: Any) -> dict[str, np.ndarray]:
    """The parameters of a state by path."""
    import flax

    flat = flax.traverse_util.flatten_dict(flax.core.unfreeze(state.params), sep="/")
    return {name: np.asarray(leaf) for name, leaf in flat.items()}
