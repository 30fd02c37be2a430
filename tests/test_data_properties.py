"""What must hold for any data: nothing lost or leaked, budgets exact, rates kept, order one."""

import math
import tempfile
from fractions import Fraction
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5scaling.data import budget, loader, pool, runs, work, writer
from t5scaling.model import network
from t5scaling.training import sharding, step
from tests import made_up

LENGTHS = {"inputs": 16, "targets": 12}
CONFIG = network.T5Config(
    vocab_size=128, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, dropout_rate=0.0,
    num_encoder_layers=1, num_decoder_layers=1,
)  # fmt: skip
ROWS = 10  # of a batch

SIDE = {
    name: st.lists(st.integers(2, 127), min_size=1, max_size=length)
    for name, length in LENGTHS.items()
}
EXAMPLES = st.lists(st.tuples(SIDE["inputs"], SIDE["targets"]), min_size=1, max_size=ROWS)


@pytest.fixture(scope="module")
def losses():
    """Function of a batch: (sum of the losses in nats, number of target tokens)."""
    layout = sharding.make_layout()
    params = step.jit_init(CONFIG, layout)(np.uint32(0)).params
    evaluate = step.jit_eval_step(CONFIG, layout)

    def call(batch):
        return jax.tree.map(float, evaluate(params, sharding.put_batch(batch, layout)))

    return call


def batch_of(rows, *, packed):
    with tempfile.TemporaryDirectory() as folder:
        examples = made_up.write(f"{folder}/made_up-train-0", rows, lengths=LENGTHS, packed=packed)
        records = examples.read_many(range(len(examples)))
        return examples, records, loader.make_batch(examples, records, rows=ROWS)


@settings(deadline=None, max_examples=25)
@given(EXAMPLES)
def test_a_packed_batch_is_its_examples_and_nothing_else(losses, rows):
    examples, records, packed = batch_of(rows, packed=True)
    _, _, separate = batch_of(rows, packed=False)

    def segments(record, name):
        ends = np.cumsum(record[f"{name}_lengths"])
        return [part.tolist() for part in np.split(record[name], ends[:-1])]

    found = [
        pair
        for record in records
        for pair in zip(segments(record, "inputs"), segments(record, "targets"), strict=True)
    ]
    assert sorted(found) == sorted(rows)
    assert examples.tokens(len(examples), "inputs") == sum(len(inputs) for inputs, _ in rows)
    loss, tokens = losses(packed)
    wanted_loss, wanted_tokens = losses(separate)
    assert tokens == wanted_tokens == sum(len(targets) for _, targets in rows)
    assert loss == pytest.approx(wanted_loss, rel=2e-6)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.booleans(), st.data())
def test_budgets_are_exact_to_one_example_and_nested(sizes, packed, data):
    rows = [([2 + i], [3] * (1 + i % 3)) for i in range(len(sizes))]
    with tempfile.TemporaryDirectory() as folder:
        examples = made_up.write(
            f"{folder}/made_up-train-0", rows, lengths=LENGTHS, packed=packed, text_tokens=sizes
        )
        counts = [record["text_tokens"] for record in examples.read_many(range(len(examples)))]
        assert sum(counts) == sum(sizes)
        budgets = data.draw(st.lists(st.integers(0, sum(sizes)), min_size=2, max_size=4))
        prefixes = []
        for tokens in sorted(budgets):
            n = budget.examples_for_tokens(examples, tokens)
            assert sum(counts[:n]) >= tokens
            assert n == 0 or sum(counts[: n - 1]) < tokens
            prefixes.append(n)
        assert prefixes == sorted(prefixes)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 700), st.lists(st.integers(1, 1000), min_size=2, max_size=4))
def test_shares_are_whole_examples_and_nested(size, thousandths):
    with tempfile.TemporaryDirectory() as folder:
        examples = made_up.write(f"{folder}/made_up-train-0", [([2], [3])] * size, lengths=LENGTHS)
        found = [pool.pool_rows(examples, f"{n / 10}%") for n in sorted(thousandths)]
    assert found == [math.ceil(Fraction(n, 1000) * size) for n in sorted(thousandths)]


# Runs, passes and mixtures

KEYS = st.lists(st.integers(0, 5) | st.integers(0, 2**64 - 1), min_size=1, max_size=12)
PASS = st.lists(KEYS, min_size=1, max_size=3)  # the keys of each run
TASKS = st.lists(
    st.tuples(st.integers(1, 9), st.lists(PASS, min_size=1, max_size=2)), min_size=1, max_size=3
)


def write_runs(at, name, pass_keys, first):
    """The runs of one pass: examples with one token each, counted from `first`; their entries, and
    the tokens in the order of the keys."""
    tokens, entries = [], []
    for number, keys in enumerate(pass_keys):
        mine = range(first + len(tokens), first + len(tokens) + len(keys))
        run = runs.RunWriter(at, f"{name}-{number}")
        rows = [([token], [1]) for token in mine]
        run.add(np.array(keys, np.uint64), made_up.block_of(rows))
        run.flush()
        entries += run.runs
        tokens += zip(keys, mine, strict=True)
    return entries, [token for _, token in sorted(tokens, key=lambda pair: pair[0])]


@settings(deadline=None, max_examples=200)
@given(TASKS, st.integers(1, 5))
def test_parts_together_are_the_sorted_passes_in_turns(tasks, parts):
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder) / "made_up.work"
        work.prepare(at, {})
        components, lists, first = [], [], 2
        for number, (rate, passes) in enumerate(tasks):
            entries, order = [], []
            for keys in passes:
                found, tokens = write_runs(at, f"{number}-{len(entries)}", keys, first)
                entries.append(found)
                order += tokens
                first += len(tokens)
            components.append({"task": f"task{number}", "rate": rate, "passes": entries})
            lists.append(order)
        mixture = writer.Mixture(at, components)
        mixture.parts = min(parts, mixture.size)
        found = []
        for number in range(mixture.parts):
            block, order = mixture.part(number)
            tokens = np.frombuffer(bytes(block.tokens), "<i4")[::2]
            found += tokens[order].tolist()
    # Every task's own order is kept, nothing twice; whoever ran out had no example left.
    assert len(found) == mixture.size
    owners = {token: number for number, order in enumerate(lists) for token in order}
    for number, order in enumerate(lists):
        mine = [token for token in found if owners[token] == number]
        assert mine == order[: len(mine)]
        if len(tasks) > 1 and mixture.ran_out == f"task{number}":
            assert mine == order
    # Rates hold in every prefix, to less than one example.
    total = sum(rate for rate, _ in tasks)
    seen = [0] * len(tasks)
    for n, token in enumerate(found, 1):
        seen[owners[token]] += 1
        for count, (rate, _) in zip(seen, tasks, strict=True):
            assert abs(count - Fraction(n * rate, total)) < 1


# Order


@pytest.fixture(scope="module")
def hundred(tmp_path_factory):
    path = tmp_path_factory.mktemp("root") / "made_up-train-0"
    rows = [([2 + i], [3]) for i in range(100)]
    return made_up.write(path, rows, lengths=LENGTHS)


@settings(deadline=None, max_examples=25)
@given(
    batch_size=st.integers(1, 12),
    first=st.integers(0, 40),
    size=st.integers(1, 60),
    start=st.integers(0, 30),
    steps=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
    shuffle=st.booleans(),
    data=st.data(),
)
def test_order_is_independent_of_hosts_and_restarts(
    hundred, batch_size, first, size, start, steps, seed, shuffle, data
):
    stream = dict(batch_size=batch_size, first=first, last=first + size, seed=seed, shuffle=shuffle)

    def rows_of(**arguments):
        batches = list(loader.train_batches(hundred, **stream, **arguments))
        return [batch["encoder_input_tokens"][:, 0] - 2 for batch in batches]

    whole = np.stack(rows_of(num_steps=start + steps))
    hosts = data.draw(st.integers(1, min(batch_size, 3)))  # each has readers of its own
    for rows in np.array_split(data.draw(st.permutations(range(batch_size))), hosts):
        found = rows_of(num_steps=steps, start_step=start, rows=rows)
        np.testing.assert_array_equal(np.stack(found), whole[start:, rows])
    stream_of_examples = whole.reshape(-1)
    for epoch in range(len(stream_of_examples) // size):
        one = stream_of_examples[epoch * size : (epoch + 1) * size]
        assert sorted(one.tolist()) == list(range(first, first + size))
