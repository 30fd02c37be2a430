"""Preprocessors of the tasks: from text to the token sequences that T5 is trained on.

Beside `inputs` and `targets` every example carries `text_tokens`, a scalar int32: how many tokens
of the corpus it covers, without prompt, sentinels and end-of-sequence tokens. Data budgets count
these. SeqIO's feature converters ignore it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import seqio
import tensorflow as tf

from tasks import vocabularies

Features = Mapping[str, seqio.Feature]
# It makes a function of a data set out of one of an example, which its annotations do not say.
map_over_dataset: Any = seqio.map_over_dataset


def concatenate_documents(
    dataset: tf.data.Dataset, output_features: Features, documents: int = 128
) -> tf.data.Dataset:
    """Tokenises `text` and joins the tokens of `documents` consecutive documents.

    No token separates two documents, as in T5. Yields {"tokens": int32 (n,)}. One call tokenises
    a whole group, which costs half of what one call per document does.
    """
    vocabulary = output_features["targets"].vocabulary

    @map_over_dataset
    @tf.autograph.experimental.do_not_convert  # no Python control flow: saves a second of start-up
    def tokenize(batch: Mapping[str, Any]) -> dict[str, Any]:
        tokens = vocabularies.encode_batch(vocabulary, _valid(batch["text"]))
        return {"tokens": tokens.flat_values}

    return tokenize(dataset.batch(documents))


def noise_counts(length: int, density: float, mean_span: float) -> tuple[int, int]:
    """How many of `length` tokens are noise, and in how many spans (both at least 1).

    `length` must be 2 or more, so that something is left to condition on.
    """
    noise = min(max(round(length * density), 1), length - 1)
    spans = min(max(round(noise / mean_span), 1), length - noise)
    return noise, spans


def segment_length(
    inputs_length: int, density: float, mean_span: float, extra: int = 1
) -> tuple[int, int]:
    """The longest run of text whose corrupted inputs fit into `inputs_length` tokens.

    `extra` is the number of end-of-sequence tokens appended to each side (0 or 1). Returns
    (tokens of text, tokens of targets that come with it). Raises ValueError if not even 2 tokens
    of text fit.
    """
    length, targets = 0, 0
    candidate = 2
    while True:
        noise, spans = noise_counts(candidate, density, mean_span)
        if candidate - noise + spans + extra > inputs_length:
            break
        length, targets = candidate, noise + spans + extra
        candidate += 1
    if not length:
        raise ValueError(
            f"feature length inputs={inputs_length} is too short for span corruption: "
            f"2 tokens of text need inputs of at least {2 + extra}"
        )
    return length, targets


def _partition(total: Any, parts: Any, rows: Any, seed: Any) -> tf.Tensor:
    """`rows` uniformly random ways to write `total` as a sum of `parts` positive integers.

    Returns int32 (rows, parts). The cuts are the first `parts - 1` places of a random order of
    the `total - 1` gaps.
    """
    order = tf.argsort(tf.random.stateless_uniform([rows, total - 1], seed), axis=-1)
    cuts = tf.sort(order[:, : parts - 1], axis=-1) + 1
    ends = tf.concat([cuts, tf.fill([rows, 1], total)], axis=-1)
    starts = tf.concat([tf.zeros([rows, 1], tf.int32), cuts], axis=-1)
    return ends - starts


def corrupt_spans(
    tokens: Any, noise: Any, spans: Any, first_sentinel: int, seed: Any
) -> tuple[tf.Tensor, tf.Tensor]:
    """Replaces `spans` random spans, `noise` tokens together, of each row by sentinels.

    A row reads kept, noise, kept, noise, ... and ends with noise. Inputs are the kept tokens with
    one sentinel for each span; targets are the spans, each after its sentinel. Sentinels descend
    from `first_sentinel`. `tokens`: int32 (B, L); `noise`, `spans`: scalars; `seed`: two integers.
    Returns int32 (B, L - noise + spans) and (B, noise + spans).
    """
    rows, length = tf.unstack(tf.shape(tokens))
    seeds = tf.random.split(seed, 2)
    kept_lengths = _partition(length - noise, spans, rows, seeds[0])
    noise_lengths = _partition(noise, spans, rows, seeds[1])
    regions = tf.reshape(tf.stack([kept_lengths, noise_lengths], axis=2), [rows, 2 * spans])
    boundaries = tf.cumsum(regions, axis=-1)[:, :-1]

    # Even regions are kept, odd ones are noise; region 2k + 1 belongs to sentinel k.
    positions = tf.tile(tf.range(length)[tf.newaxis], [rows, 1])
    region = tf.searchsorted(boundaries, positions, side="right")
    first = region != tf.pad(region[:, :-1], [[0, 0], [1, 0]], constant_values=-1)
    sentinel = first_sentinel - region // 2
    is_noise = region % 2 == 1

    def keep(wanted: Any) -> tf.Tensor:
        values = tf.where(wanted, tokens, sentinel)
        return tf.boolean_mask(values, wanted | first)

    inputs = tf.reshape(keep(~is_noise), [rows, length - noise + spans])
    targets = tf.reshape(keep(is_noise), [rows, noise + spans])
    return inputs, targets


def span_corruption(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int] | None,
    output_features: Features,
    noise_density: float = 0.15,
    mean_noise_span_length: float = 3.0,
) -> tf.data.Dataset:
    """T5's pretraining objective (Raffel et al. 2020, section 3.1.4) on {"tokens": int32 (n,)}.

    Each element is split into segments as long as the feature length of `inputs` allows; the
    rest, if it has 2 tokens or more, becomes a shorter last segment. Yields `inputs`, `targets`
    (int32, ending with EOS where the feature says so) and `text_tokens`. The same SeqIO seed gives
    the same noise. Raises ValueError if a feature length is missing or too short.
    """
    if not 0 < noise_density <= 0.9 or not 1 <= mean_noise_span_length < float("inf"):
        # Nearer to 1 ever more text goes into one row, and no end is found of it.
        raise ValueError(
            f"noise_density is {noise_density} and mean_noise_span_length is "
            f"{mean_noise_span_length}; expected a number above 0 to 0.9, and one from 1"
        )
    if not sequence_length or not {"inputs", "targets"} <= set(sequence_length):
        raise ValueError("span corruption needs feature lengths for 'inputs' and 'targets'")
    vocabulary = output_features["inputs"].vocabulary
    eos = {name: int(output_features[name].add_eos) for name in ("inputs", "targets")}
    length, targets_length = segment_length(
        sequence_length["inputs"], noise_density, mean_noise_span_length, eos["inputs"]
    )
    targets_length += eos["targets"] - eos["inputs"]
    if targets_length > sequence_length["targets"]:
        raise ValueError(
            f"feature length targets={sequence_length['targets']} is too short: span corruption "
            f"with inputs={sequence_length['inputs']} gives targets of {targets_length} tokens"
        )
    counts = [(0, 0), (0, 0)]
    counts += [noise_counts(n, noise_density, mean_noise_span_length) for n in range(2, length + 1)]
    noise, spans = counts[length]
    sentinels = vocabularies.count_sentinels(vocabulary)
    if spans > sentinels:
        raise ValueError(
            f"feature length inputs={sequence_length['inputs']} needs {spans} sentinels, "
            f"the vocabulary has {sentinels}"
        )
    # Looked up rather than computed again: one rounding for every length, whole or short.
    table = tf.constant(counts, tf.int32)
    eos_id: Any = vocabulary.eos_id

    def corrupt_rows(tokens: Any, noise: Any, spans: Any, seed: Any) -> dict[str, Any]:
        inputs, targets = corrupt_spans(tokens, noise, spans, vocabulary.vocab_size - 1, seed)
        rows: dict[str, Any] = {"inputs": inputs, "targets": targets}
        for name, count in eos.items():
            rows[name] = tf.pad(rows[name], [[0, 0], [0, count]], constant_values=eos_id)
        rows["text_tokens"] = tf.fill(tf.shape(tokens)[:1], tf.shape(tokens)[1])
        return rows

    def corrupt_short(rest: Any, seed: Any) -> dict[str, Any]:
        """Zero rows or one: a single token leaves nothing to condition on and is dropped."""
        size = tf.maximum(tf.size(rest), 2)
        chosen = table[size]
        tokens = tf.pad(rest, [[0, size - tf.size(rest)]])[tf.newaxis]
        rows = corrupt_rows(tokens, chosen[0], chosen[1], seed)
        count = tf.cast(tf.size(rest) >= 2, tf.int32)
        return {name: values[:count] for name, values in rows.items()}

    @map_over_dataset(num_seeds=1)
    @tf.autograph.experimental.do_not_convert
    def corrupt(group: Mapping[str, Any], seed: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        tokens = tf.cast(group["tokens"], tf.int32)
        seeds = tf.random.split(tf.stack(seed), 2)
        whole = tf.size(tokens) // length * length
        rows = corrupt_rows(tf.reshape(tokens[:whole], [-1, length]), noise, spans, seeds[0])
        return rows, corrupt_short(tokens[whole:], seeds[1])

    def one_by_one(rows: Any, short: Any) -> tf.data.Dataset:
        slices = tf.data.Dataset.from_tensor_slices
        return slices(rows).concatenate(slices(short))

    return corrupt(dataset).flat_map(one_by_one)


def translation(
    dataset: tf.data.Dataset, output_features: Features, prompt: str
) -> tf.data.Dataset:
    """Pairs of text to T5's translation examples.

    From {"source", "target"} (strings) to `inputs` = prompt + source, `targets` = target (int32,
    ending with EOS where the feature says so), `inputs_pretokenized`, `targets_pretokenized` and
    `text_tokens`, which is 0 if a side has no text. Nothing is truncated or left out here.
    """
    # Pieces do not cross spaces, so that the prompt's tokens can be counted apart.
    prompt_tokens = len(output_features["inputs"].vocabulary.encode(prompt))

    @map_over_dataset
    @tf.autograph.experimental.do_not_convert
    def tokenize(batch: Mapping[str, Any]) -> dict[str, Any]:
        sides = {name: _valid(batch[name]) for name in ("source", "target")}
        inputs = tf.strings.join([prompt, sides["source"]])
        example = _tokenized({"inputs": inputs, "targets": sides["target"]}, output_features)
        lengths = [tf.strings.length(tf.strings.strip(side)) for side in sides.values()]
        has_text = tf.cast(tf.reduce_min(tf.stack(lengths), axis=0) > 0, tf.int32)
        example["text_tokens"] = (example["text_tokens"] - prompt_tokens) * has_text
        return example

    return _by_batches(tokenize, dataset)


def rename(dataset: tf.data.Dataset, source: str, target: str) -> tf.data.Dataset:
    """Pairs by language, {"de", "en"}, to {"source", "target"}."""
    return dataset.map(lambda pair: {"source": pair[source], "target": pair[target]})


def text_to_text(dataset: tf.data.Dataset, output_features: Features) -> tf.data.Dataset:
    """{"inputs", "targets", ...} (strings) to tokens, as `translation` does without a prompt.

    Other fields stay; all tokens count as text.
    """

    @map_over_dataset
    @tf.autograph.experimental.do_not_convert
    def tokenize(batch: Mapping[str, Any]) -> dict[str, Any]:
        text = {name: _valid(batch[name]) for name in ("inputs", "targets")}
        return {**batch, **_tokenized(text, output_features)}

    return _by_batches(tokenize, dataset)


def _valid(strings: Any) -> tf.Tensor:
    """UTF-8, whatever was there: a tokenizer stops at anything else."""
    return tf.strings.unicode_transcode(strings, "UTF-8", "UTF-8")


def _tokenized(text: Mapping[str, tf.Tensor], output_features: Features) -> dict[str, Any]:
    example: dict[str, Any] = {"text_tokens": 0}
    for name, strings in text.items():
        feature = output_features[name]
        tokens: Any = vocabularies.encode_batch(feature.vocabulary, strings)
        example["text_tokens"] += tf.cast(tokens.row_lengths(), tf.int32)
        if feature.add_eos:
            eos = tf.fill([tf.size(strings), 1], feature.vocabulary.eos_id)
            tokens = tf.concat([tokens, eos], axis=1)
        example[name] = tokens
        example[f"{name}_pretokenized"] = strings
    return example


def _by_batches(function: Callable, dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Tokenising example by example costs several times as much."""
    # Unbatched, a row of a ragged tensor becomes a plain tensor only once it went through a map.
    return function(dataset.batch(256)).unbatch().map(dict, num_parallel_calls=tf.data.AUTOTUNE)
