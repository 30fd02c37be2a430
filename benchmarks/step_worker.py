"""A train step in a process of its own, driven by train_step.py a block of steps at a time.

    python benchmarks/step_worker.py ours|peer|t5x EXCHANGE

`ours` is this package's step, `peer` that of Hugging Face transformers on PyTorch, `t5x` that of
stock T5X, all with the model and the batch of tiny.py. `ours` writes its initial parameters to the
npz file EXCHANGE, the others begin with them. The first line of output is a JSON object: the number
of `parameters` and the `loss` before any step (nats per target token, without z-loss). Then each
line of input, a number of steps, is answered by a line of JSON, see `Block`; in between the process
does nothing.
"""

import dataclasses
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tiny

LEARNING_RATE = 0.01


@dataclasses.dataclass(frozen=True)
class Block:
    """What the steps of a block cost."""

    steps: int
    wall_s: float
    cpu_s: float  # of all threads of the process
    page_faults: int
    loss: float  # of the last step, nats per target token


def measure(steps: int, run: Callable[[], float]) -> Block:
    """`run` does `steps` steps, waits for the last one and returns its loss."""
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    wall, cpu = time.perf_counter(), time.process_time()
    loss = run()
    return Block(
        steps=steps,
        wall_s=time.perf_counter() - wall,
        cpu_s=time.process_time() - cpu,
        page_faults=resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults,
        loss=loss,
    )


def start_ours(exchange: str) -> tuple[dict[str, Any], Callable[[int], Block]]:
    """-> (the first line's facts, function that runs a block of steps)."""
    tiny.prepare()
    import jax

    from t5scaling.model import network
    from t5scaling.training import sharding, step

    config, layout = tiny.model(), sharding.make_layout()
    train_state = step.jit_init(config, layout)(np.uint32(0))
    flat = jax.tree_util.tree_flatten_with_path(train_state.params)[0]
    params = {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in flat}
    np.savez(exchange, **params)
    arrays = sharding.put_batch(tiny.make_batch(), layout)
    total, tokens = step.jit_eval_step(config, layout)(train_state.params, arrays)
    train_step = step.jit_train_step(config, step.Objective(), layout)

    def run_block(steps: int) -> Block:
        def run() -> float:
            nonlocal train_state
            for _ in range(steps):
                # Each step's sums are its own: there is a new window each time.
                train_state, logged = train_step(
                    train_state, arrays, np.float32(LEARNING_RATE), np.uint32(0), np.bool_(True)
                )
            jax.block_until_ready(train_state)
            window = logged[0]
            return float(window.loss) / float(window.target_tokens)

        return measure(steps, run)

    facts = {"parameters": network.count_parameters(config), "loss": float(total) / float(tokens)}
    return facts, run_block


def start_peer(exchange: str) -> tuple[dict[str, Any], Callable[[int], Block]]:
    """As `start_ours`."""
    import torch
    from transformers.optimization import Adafactor

    with np.load(exchange) as file:
        model = peer_model(tiny.VOCABULARY, tiny.ARCHITECTURE, dict(file))
    arguments = peer_batch(tiny.make_batch())
    # T5X's settings; relative_step would replace the learning rate by a schedule.
    optimizer = Adafactor(
        model.parameters(), lr=LEARNING_RATE, scale_parameter=True, relative_step=False
    )
    with torch.no_grad():
        loss = model(**arguments).loss.item()

    def run_block(steps: int) -> Block:
        def run() -> float:
            for _ in range(steps):
                optimizer.zero_grad(set_to_none=True)
                loss = model(**arguments).loss
                loss.backward()
                optimizer.step()
            return loss.item()

        return measure(steps, run)

    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "loss": loss}, run_block


def start_t5x(exchange: str) -> tuple[dict[str, Any], Callable[[int], Block]]:
    """As `start_ours`."""
    tiny.prepare()
    import jax
    import t5x_peer

    with np.load(exchange) as file:
        params = dict(file)
    state, train_step = t5x_peer.make(tiny.VOCABULARY, tiny.ARCHITECTURE, params)
    batch = tiny.make_batch()
    tokens = float(batch["decoder_loss_weights"].sum())
    arrays = jax.device_put(batch)

    def run_block(steps: int) -> Block:
        def run() -> float:
            nonlocal state
            for _ in range(steps):
                state, (total, z_loss) = train_step(state, arrays, np.float32(LEARNING_RATE))
            jax.block_until_ready(state)
            return (float(total) - float(z_loss)) / tokens

        return measure(steps, run)

    parameters = sum(param.size for param in params.values())
    first = run_block(1)  # whose loss is that before any update
    return {"parameters": parameters, "loss": first.loss}, run_block


def peer_model(
    vocab_size: int, architecture: Mapping[str, Any], params: Mapping[str, np.ndarray]
) -> Any:
    """transformers' T5 1.1, without dropout, with our parameters by path.

    `architecture` as tiny.py's, `params` e.g. {"encoder/encoder_norm/scale": ...}.
    Raises ValueError if parameters are left over on either side.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=vocab_size,
            d_model=architecture["emb_dim"],
            d_kv=architecture["head_dim"],
            d_ff=architecture["mlp_dim"],
            num_layers=architecture["num_encoder_layers"],
            num_decoder_layers=architecture["num_decoder_layers"],
            num_heads=architecture["num_heads"],
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            use_cache=False,
            pad_token_id=0,
            decoder_start_token_id=0,
        )
    )
    # Version 5 shares the embedding with the output projection whatever the configuration says.
    model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    values = {peer_name(path): value for path, value in params.items()}
    theirs = dict(model.named_parameters())
    if different := sorted(set(values) ^ set(theirs)):
        raise ValueError(f"parameters that only one model has: {different}")
    with torch.no_grad():
        for name, parameter in theirs.items():
            value = values[name]
            if value.ndim == 2 and name != "shared.weight":
                value = value.T  # theirs are (outputs, inputs)
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
    return model


# Sub-layers of a block by their place, and the parts of a name within them.
_SUB_LAYERS = {
    "encoder": {
        "pre_attention_layer_norm/scale": "layer.0.layer_norm",
        "attention": "layer.0.SelfAttention",
        "pre_mlp_layer_norm/scale": "layer.1.layer_norm",
        "mlp": "layer.1.DenseReluDense",
    },
    "decoder": {
        "pre_self_attention_layer_norm/scale": "layer.0.layer_norm",
        "self_attention": "layer.0.SelfAttention",
        "pre_cross_attention_layer_norm/scale": "layer.1.layer_norm",
        "encoder_decoder_attention": "layer.1.EncDecAttention",
        "pre_mlp_layer_norm/scale": "layer.2.layer_norm",
        "mlp": "layer.2.DenseReluDense",
    },
}
_PROJECTIONS = {"query": "q", "key": "k", "value": "v", "out": "o"}


def peer_name(path: str) -> str:
    """transformers' name of one of our parameters."""
    if path == "token_embedder/embedding":
        return "shared.weight"
    if path == "decoder/logits_dense/kernel":
        return "lm_head.weight"
    stack, rest = path.split("/", 1)
    if rest == f"{stack}_norm/scale":
        return f"{stack}.final_layer_norm.weight"
    if rest == "relpos_bias/rel_embedding":
        return f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    layer, rest = rest.split("/", 1)
    block = f"{stack}.block.{layer.removeprefix('layers_')}"
    if rest in _SUB_LAYERS[stack]:
        return f"{block}.{_SUB_LAYERS[stack][rest]}.weight"
    module, kernel, _ = rest.split("/")
    return f"{block}.{_SUB_LAYERS[stack][module]}.{_PROJECTIONS.get(kernel, kernel)}.weight"


def peer_batch(batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Our batch as arguments of transformers' model, which shifts the targets itself."""
    import torch

    inputs = torch.from_numpy(batch["encoder_input_tokens"]).long()
    targets = torch.from_numpy(batch["decoder_target_tokens"]).long()
    weights = torch.from_numpy(batch["decoder_loss_weights"])
    return {
        "input_ids": inputs,
        "attention_mask": (inputs > 0).long(),
        "labels": targets.masked_fill(weights == 0, -100),  # -100: no loss
    }


def main() -> None:
    who, exchange = sys.argv[1:]
    # What libraries print must not be mistaken for an answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    facts, run_block = {"ours": start_ours, "peer": start_peer, "t5x": start_t5x}[who](exchange)
    print(json.dumps(facts), file=answers)
    for line in sys.stdin:
        print(json.dumps(dataclasses.asdict(run_block(int(line)))), file=answers)


if __name__ == "__main__":
    main()
