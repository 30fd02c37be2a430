"""A process of the decoding benchmark; see decode.py.

    python benchmarks/decode_worker.py WHO PARAMETERS

WHO is `ours`, `plain` (our model, decoded with none of the ways of model/decoding.py to save work)
or `peer` (Hugging Face transformers). `ours` trains the parameters if the npz file PARAMETERS is
not there. The first line of output is a JSON object of facts; then each line of input, `greedy` or
`beam4`, is answered by a line of JSON, see `Round`, once the whole test set has been decoded. In
between the process does nothing.
"""

import csv
import dataclasses
import functools
import json
import lzma
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tiny

SENTENCES, BATCH, LIMIT = 256, 64, 128  # tokens of an input or an answer at most: LIMIT
VOCABULARY = 8192  # the embedded corpus's, rounded up, as in gin/models/tiny.gin
BEAMS = 4
EOS = 1
TRAINING_STEPS, LEARNING_RATE = 300, 0.01
CORPUS = Path(__file__).resolve().parent.parent / "tasks" / "corpus"
Decode = Callable[[np.ndarray], np.ndarray]  # (B, S) int32 -> (B, LIMIT or less) int32


@dataclasses.dataclass(frozen=True)
class Round:
    """The test set, decoded once."""

    wall_s: float
    cpu_s: float  # of all threads of the process
    answers: list[list[int]]  # of each sentence, the end token included


def test_set() -> list[tuple[np.ndarray, np.ndarray]]:
    """The first English sentences of the embedded corpus's test set, and the German ones."""
    from t5scaling.data import vocabulary

    encode = vocabulary.Vocabulary(CORPUS / "spm8k.model").encode
    pairs = []
    with lzma.open(CORPUS / "test.tsv.xz", "rt", encoding="utf-8", newline="\n") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            if row["en"] and row["de"]:
                pair = encode(row["en"]), encode(row["de"])
                if max(map(len, pair)) <= LIMIT:
                    pairs.append(pair)
            if len(pairs) == SENTENCES:
                return pairs
    raise ValueError(f"the test set has only {len(pairs)} sentences of {LIMIT} tokens or less")


def train(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Any:
    """Parameters that know the test set by heart.

    Answers then have the lengths of real translations and hardly ever two that are equally good,
    as a large model's have. How good they are for other sentences is of no matter here.
    """
    import jax

    from t5scaling.data import packing
    from t5scaling.training import sharding, step

    lengths = [np.array([len(pair[side]) for pair in pairs]) for side in (0, 1)]
    rows = packing.pack(lengths, [LIMIT, LIMIT])
    config, layout = tiny.model(VOCABULARY), sharding.make_layout()
    state = step.jit_init(config, layout)(np.uint32(0))
    train_step = step.jit_train_step(config, step.Objective(), layout)
    for number in range(TRAINING_STEPS):
        chosen = np.random.default_rng(number).permutation(len(rows))[: tiny.ROWS]
        batch = packed_batch([[pairs[i] for i in rows[row]] for row in chosen])
        scale = min(1.0, (number + 1) / 50, 2 * (TRAINING_STEPS - number) / TRAINING_STEPS)
        state, logged = train_step(
            state,
            sharding.put_batch(batch, layout),
            np.float32(LEARNING_RATE * scale),
            np.uint32(0),
            np.bool_(True),
        )
    window = logged[0]
    print(f"trained to {float(window.loss) / float(window.target_tokens):.4f} nats", flush=True)
    return jax.tree.map(np.asarray, state.params)


def packed_batch(rows: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]]) -> dict[str, np.ndarray]:
    names = ("encoder_input_tokens", "decoder_target_tokens", "decoder_input_tokens")
    segments = ("encoder_segment_ids", "decoder_segment_ids")
    batch = {name: np.zeros((len(rows), LIMIT), np.int32) for name in names + segments}
    for row, pairs in enumerate(rows):
        first, second = 0, 0
        for segment, (source, target) in enumerate(pairs, start=1):
            inputs = slice(first, first + len(source))
            targets = slice(second, second + len(target))
            batch["encoder_input_tokens"][row, inputs] = source
            batch["decoder_target_tokens"][row, targets] = target
            batch["decoder_input_tokens"][row, targets] = [0, *target[:-1]]
            batch["encoder_segment_ids"][row, inputs] = segment
            batch["decoder_segment_ids"][row, targets] = segment
            first, second = inputs.stop, targets.stop
    batch["decoder_loss_weights"] = (batch["decoder_target_tokens"] > 0).astype(np.float32)
    return batch


def start_ours(file: str) -> dict[str, Decode]:
    tiny.prepare()
    from t5scaling.model import decoding, network

    if not os.path.exists(file):
        np.savez(file, **by_path(train(test_set())))
    model, params = network.Transformer(tiny.model(VOCABULARY)), load(file)

    def decode(inputs_BxS: np.ndarray, *, decoder: Any) -> np.ndarray:
        return np.asarray(decoder(model, params, inputs_BxS, max_decode_len=LIMIT)[0])

    decoders = {"greedy": decoding.Greedy(), f"beam{BEAMS}": decoding.BeamSearch(BEAMS, alpha=0.0)}
    return {name: functools.partial(decode, decoder=decoder) for name, decoder in decoders.items()}


def start_plain(file: str) -> dict[str, Decode]:
    tiny.prepare()
    import jax

    from t5scaling.model import network

    model, params = network.Transformer(tiny.model(VOCABULARY)), load(file)

    def decode(inputs_BxS: np.ndarray, *, function: Any) -> np.ndarray:
        return np.asarray(function(params, inputs_BxS))

    return {
        name: functools.partial(decode, function=jax.jit(functools.partial(function, model)))
        for name, function in (("greedy", plain_greedy), (f"beam{BEAMS}", plain_beam_search))
    }


def plain_step(model: Any, params: Any, inputs_NxS: Any) -> tuple[Any, Callable[..., Any]]:
    """-> (cache of full length, function of (tokens (N,), cache, index) -> (logits (N, V), cache)).

    Every beam is a row of its own, with its own keys and values of the encoder's output.
    """
    import jax.numpy as jnp

    variables = {"params": params}
    context, cache = model.apply(variables, inputs_NxS, LIMIT, method="start_decoding")

    def step(tokens_N: Any, cache: Any, index: Any) -> Any:
        visible_L = jnp.arange(LIMIT) <= index
        logits_Nx1xV, cache = model.apply(
            variables,
            tokens_N[:, None],
            cache,
            index,
            visible_L[None, None],
            context,
            method="decode_step",
        )
        return logits_Nx1xV[:, 0], cache

    return cache.grown(LIMIT), step


def plain_greedy(model: Any, params: Any, inputs_BxS: Any) -> Any:
    import jax
    import jax.numpy as jnp

    batch = len(inputs_BxS)
    cache, step = plain_step(model, params, inputs_BxS)

    def going(carry: Any) -> Any:
        index, _, _, ended_B, _ = carry
        return (index < LIMIT) & ~jnp.all(ended_B)

    def advance(carry: Any) -> Any:
        index, last_B, tokens_BxL, ended_B, cache = carry
        logits_BxV, cache = step(last_B, cache, index)
        token_B = jnp.where(ended_B, 0, jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32))
        tokens_BxL = tokens_BxL.at[:, index].set(token_B)
        return index + 1, token_B, tokens_BxL, ended_B | (token_B == EOS), cache

    tokens_BxL = jnp.zeros((batch, LIMIT), jnp.int32)
    ended_B = ~jnp.any(inputs_BxS > 0, axis=1)
    start = (jnp.int32(0), tokens_BxL[:, 0], tokens_BxL, ended_B, cache)
    return jax.lax.while_loop(going, advance, start)[2]


def plain_beam_search(model: Any, params: Any, inputs_BxS: Any) -> Any:
    """The same search as model/decoding.py's without a length penalty; beams that change places
    take their cache with them."""
    import jax
    import jax.numpy as jnp

    batch, K, never = len(inputs_BxS), BEAMS, -1e7
    cache, step = plain_step(model, params, jnp.repeat(inputs_BxS, K, axis=0))

    def best(scores_BxM: Any, arrays: Any, count: int) -> Any:
        scores_BxC, chosen_BxC = jax.lax.top_k(scores_BxM, count)
        rows_Bx1 = jnp.arange(batch)[:, None]
        return scores_BxC, jax.tree.map(lambda x: x[rows_Bx1, chosen_BxC], arrays)

    def going(carry: Any) -> Any:
        index, live, _, done, _, _ = carry
        return (index < LIMIT) & ~jnp.all(done[:, -1] > live[:, 0])

    def advance(carry: Any) -> Any:
        index, live, live_tokens, done, done_tokens, cache = carry
        last_BxK = jnp.where(index == 0, 0, live_tokens[:, :, index - 1])
        logits_NxV, cache = step(last_BxK.reshape(-1), cache, index)
        log_probs_BxKxV = jax.nn.log_softmax(logits_NxV).reshape(batch, K, -1) + live[..., None]
        vocab = log_probs_BxKxV.shape[-1]
        scores, flat = jax.lax.top_k(log_probs_BxKxV.reshape(batch, -1), 2 * K)
        parents, words = flat // vocab, flat % vocab
        tokens = live_tokens[jnp.arange(batch)[:, None], parents].at[:, :, index].set(words)
        ended = words == EOS
        live, (live_tokens, parents) = best(jnp.where(ended, never, scores), (tokens, parents), K)
        done, done_tokens = best(
            jnp.concatenate([done, jnp.where(ended, scores, never)], axis=1),
            jnp.concatenate([done_tokens, tokens], axis=1),
            K,
        )
        rows_N = (jnp.arange(batch)[:, None] * K + parents).reshape(-1)
        cache = jax.tree.map(lambda x: x[rows_N], cache)
        return index + 1, live, live_tokens, done, done_tokens, cache

    nothing = jnp.zeros((batch, K, LIMIT), jnp.int32)
    live = jnp.full((batch, K), never).at[:, 0].set(0.0)
    done = jnp.where(jnp.any(inputs_BxS > 0, axis=1), never, 1.0)[:, None] * jnp.ones(K)
    start = (jnp.int32(0), live, nothing, done, nothing, cache)
    _, _, live_tokens, done, done_tokens, _ = jax.lax.while_loop(going, advance, start)
    return jnp.where(done[:, :1] > never / 2, done_tokens[:, 0], live_tokens[:, 0])


def start_peer(file: str) -> dict[str, Decode]:
    import step_worker
    import torch

    with np.load(file) as arrays:
        model = step_worker.peer_model(VOCABULARY, tiny.ARCHITECTURE, dict(arrays))
    model.eval()

    def decode(inputs_BxS: np.ndarray, *, beams: int) -> np.ndarray:
        inputs = torch.from_numpy(inputs_BxS).long()
        with torch.inference_mode():
            tokens = model.generate(
                input_ids=inputs,
                attention_mask=(inputs > 0).long(),
                max_new_tokens=LIMIT,
                num_beams=beams,
                length_penalty=0.0,
                early_stopping=False,
                do_sample=False,
                use_cache=True,
                pad_token_id=0,
                eos_token_id=EOS,
                decoder_start_token_id=0,
            )
        return tokens.numpy()[:, 1:]

    return {
        "greedy": functools.partial(decode, beams=1),
        f"beam{BEAMS}": functools.partial(decode, beams=BEAMS),
    }


def by_path(params: Any) -> dict[str, np.ndarray]:
    import jax

    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}


def load(file: str) -> Any:
    import jax
    from flax.traverse_util import unflatten_dict

    with np.load(file) as arrays:
        return jax.device_put(unflatten_dict(dict(arrays), sep="/"))


def until_end(tokens: np.ndarray) -> list[int]:
    """The tokens up to and including the end token, without padding."""
    ends = np.flatnonzero(tokens == EOS)
    return tokens[: ends[0] + 1].tolist() if len(ends) else tokens[tokens > 0].tolist()


def batches_of(inputs: Sequence[np.ndarray], who: str) -> list[tuple[list[int], np.ndarray]]:
    """(numbers of the inputs, rows): the batches of `eval` and `infer`, the same ones for all.

    The peer's rows are as wide as the longest of them: it has no shapes to compile for. Ours are
    padded to the narrowest width of evaluation that holds them.
    """
    from t5scaling.evaluation import generate

    batches = []
    shares = [len(tokens) / LIMIT for tokens in inputs]
    for chosen, share in generate.batches_by_length(shares, BATCH):
        width = max(len(inputs[i]) for i in chosen) if who == "peer" else int(LIMIT * share)
        tokens_BxS = np.zeros((len(chosen), width), np.int32)
        for row, index in enumerate(chosen):
            tokens_BxS[row, : len(inputs[index])] = inputs[index]
        batches.append((chosen, tokens_BxS))
    return batches


def decode_all(decode: Decode, batches: Sequence[tuple[list[int], np.ndarray]]) -> Round:
    wall, cpu = time.perf_counter(), time.process_time()
    outputs = [decode(tokens_BxS) for _, tokens_BxS in batches]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    answers: dict[int, list[int]] = {}
    for (chosen, _), output in zip(batches, outputs, strict=True):
        answers.update((index, until_end(row)) for index, row in zip(chosen, output, strict=True))
    return Round(wall, cpu, [answers[index] for index in range(len(answers))])


def main() -> None:
    who, file = sys.argv[1:]
    # What libraries print must not be mistaken for an answer.
    output = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    decoders = {"ours": start_ours, "plain": start_plain, "peer": start_peer}[who](file)
    inputs = [source for source, _ in test_set()]
    batches = batches_of(inputs, who)
    facts = {
        "input_tokens": sum(map(len, inputs)),
        "batches": [tokens_BxS.shape for _, tokens_BxS in batches],
    }
    print(json.dumps(facts), file=output)
    for line in sys.stdin:
        done = decode_all(decoders[line.strip()], batches)
        print(json.dumps(dataclasses.asdict(done)), file=output)


if __name__ == "__main__":
    main()
