"""Examples on disk, budgets, batches, mixing and packing: everything that needs no SeqIO."""

import functools
import itertools
import json
import os
import shutil
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5scaling.data import loader, provenance, writer
from t5scaling.data.budget import Stream, examples_for_tokens
from t5scaling.data.examples import DataSpec, Examples, find_examples, sha256_of
from t5scaling.data.mixing import interleave
from t5scaling.data.packing import pack
from t5scaling.data.runs import FEATURES
from t5scaling.errors import UserError
from tests import made_up

LENGTHS = {"inputs": 8, "targets": 6}


def write_examples(path, n, packed=False, seed=0):
    """Example i has 1-4 input tokens, all 10 + i, and 1-3 target tokens, all 20 + i.

    Returns (examples, {field: count of each example}).
    """
    rng = np.random.default_rng(seed)
    sizes = {"inputs": rng.integers(1, 5, n), "targets": rng.integers(1, 4, n)}
    sizes |= {"text": rng.integers(0, 9, n), "segments": np.ones(n, int)}
    rows = [
        ([10 + i] * inputs, [20 + i] * targets)
        for i, (inputs, targets) in enumerate(zip(sizes["inputs"], sizes["targets"], strict=True))
    ]
    return made_up.write(
        path, rows, lengths=LENGTHS, packed=packed, text_tokens=sizes["text"]
    ), sizes


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    return write_examples(tmp_path_factory.mktemp("root") / "made_up-train-0", 1000)[0]


def numbers(batches):
    """Which examples the rows of batches hold."""
    return np.concatenate([b["encoder_input_tokens"][:, 0] - 10 for b in batches]).tolist()


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


# Order of training batches


def test_without_shuffle_the_first_epoch_keeps_the_stored_order(thousand):
    found = numbers(loader.train_batches(thousand, batch_size=8, last=100, num_steps=50))
    epochs = [found[i : i + 100] for i in range(0, 400, 100)]
    assert epochs[0] == list(range(100))
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_with_shuffle_every_epoch_has_an_order_of_its_own(thousand):
    def read(seed):
        arguments = dict(batch_size=7, first=50, last=150, num_steps=43, shuffle=True)
        return numbers(loader.train_batches(thousand, **arguments, seed=seed))

    found = read(3)
    epochs = [tuple(found[i : i + 100]) for i in range(0, 300, 100)]
    assert all(sorted(epoch) == list(range(50, 150)) for epoch in epochs)
    assert len({tuple(range(50, 150)), *epochs}) == 4
    assert read(3) == found
    assert read(4) != found


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_restart_at_any_step_goes_on_as_if_nothing_had_happened(thousand, shuffle):
    arguments = dict(batch_size=6, last=37, seed=1, shuffle=shuffle)
    whole = list(loader.train_batches(thousand, **arguments, num_steps=20))
    for step in (0, 1, 6, 7, 19):
        rest = list(
            loader.train_batches(thousand, **arguments, start_step=step, num_steps=20 - step)
        )
        assert len(rest) == 20 - step
        for expected, found in zip(whole[step:], rest, strict=True):
            assert expected.keys() == found.keys()
            for name in expected:
                np.testing.assert_array_equal(expected[name], found[name])


def test_a_distant_step_is_reached_at_once(thousand):
    distant = loader.train_batches(thousand, batch_size=256, start_step=10**9, num_steps=1)
    (batch,) = distant
    assert batch["encoder_input_tokens"].shape == (256, 8)


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_a_batch_does_not_depend_on_who_reads_its_rows(thousand, parts):
    arguments = dict(batch_size=12, last=50, num_steps=9, seed=2, shuffle=True)
    alone = list(loader.train_batches(thousand, **arguments))
    shares = [
        loader.train_batches(thousand, **arguments, rows=rows)
        for rows in np.split(np.arange(12), parts)
    ]
    for whole, *parts in zip(alone, *shares, strict=True):
        for name in whole:
            np.testing.assert_array_equal(whole[name], np.concatenate([p[name] for p in parts]))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"first": 5, "last": 5}, ["[5, 5)", "1,000"]),
        ({"last": 1001}, ["[0, 1001)", "1,000"]),
        ({"batch_size": 0}, ["batch size 0"]),
    ],
)
def test_impossible_requests_are_refused(thousand, arguments, words):
    with pytest.raises(UserError) as error:
        loader.train_batches(thousand, **{"batch_size": 8, "num_steps": 1, **arguments})
    assert all(word in str(error.value) for word in words)


# Contents of batches


def test_evaluation_reads_every_example_once(thousand):
    batches = list(loader.eval_batches(thousand, batch_size=48, first=3, last=202))
    real = [rows for _, rows in batches]
    assert real == [48, 48, 48, 48, 7]
    assert numbers([{k: v[:rows] for k, v in b.items()} for b, rows in batches]) == list(
        range(3, 202)
    )
    last = batches[-1][0]
    assert all(values.shape[0] == 48 for values in last.values())
    assert not any(values[7:].any() for values in last.values())


def test_a_batch_holds_the_records(thousand):
    (batch,) = loader.train_batches(thousand, batch_size=5, start_step=3, num_steps=1)
    assert set(batch) == {
        "encoder_input_tokens",
        "decoder_input_tokens",
        "decoder_target_tokens",
        "decoder_loss_weights",
    }
    for row, number in enumerate(range(15, 20)):
        record = thousand.read(number)
        targets = record["targets"].tolist()
        left = 6 - len(targets)
        encoder = record["inputs"].tolist() + [0] * (8 - len(record["inputs"]))
        assert batch["encoder_input_tokens"][row].tolist() == encoder
        assert batch["decoder_target_tokens"][row].tolist() == targets + [0] * left
        assert batch["decoder_input_tokens"][row].tolist() == [0, *targets[:-1]] + [0] * left
        assert batch["decoder_loss_weights"][row].tolist() == [1.0] * len(targets) + [0.0] * left
    assert {name: str(values.dtype) for name, values in batch.items()} == {
        name: "float32" if name == "decoder_loss_weights" else "int32" for name in batch
    }


def test_segments_of_a_packed_row_are_kept_apart(tmp_path):
    examples, counts = write_examples(tmp_path / "made_up-train-0", 7, packed=True)
    (batch,) = loader.train_batches(examples, batch_size=len(examples), num_steps=1)
    rows = [sorted(set(row[row > 0] - 10)) for row in batch["encoder_input_tokens"]]
    assert sorted(flat(rows)) == list(range(7)) and max(map(len, rows)) > 1
    for row, members in enumerate(rows):
        sizes = {name: counts[name][members].tolist() for name in FEATURES}
        targets = [[20 + i] * size for i, size in zip(members, sizes["targets"], strict=True)]
        left = [0] * (6 - sum(sizes["targets"]))
        assert batch["decoder_target_tokens"][row].tolist() == flat(targets) + left
        shifted = flat([0, *segment[:-1]] for segment in targets)
        assert batch["decoder_input_tokens"][row].tolist() == shifted + left
        ids = flat([k + 1] * size for k, size in enumerate(sizes["targets"]))
        assert batch["decoder_segment_ids"][row].tolist() == ids + left
        ids = flat([k + 1] * size for k, size in enumerate(sizes["inputs"]))
        assert batch["encoder_segment_ids"][row].tolist() == ids + [0] * (8 - len(ids))


# Budgets


def test_budgets_are_exact(tmp_path):
    # More examples than knots, so that the knots are 2 examples apart.
    examples, columns = write_examples(tmp_path / "made_up-train-0", 5000)
    assert examples.meta["knots"]["every"] == 2
    for field, column in columns.items():
        cumulated = np.concatenate([[0], np.cumsum(column)])
        for n in (0, 1, 2, 3, 999, 4998, 4999, 5000):
            assert examples.tokens(n, field) == cumulated[n]
        total = int(cumulated[-1])
        budgets = [1, 2, *np.random.default_rng(0).integers(1, total, 300).tolist(), total]
        for budget in budgets:
            smallest = next(n for n in itertools.count() if cumulated[n] >= budget)
            assert examples_for_tokens(examples, budget, field) == smallest
        assert examples_for_tokens(examples, 0, field) == 0
        with pytest.raises(UserError, match=f"{total:,}"):
            examples_for_tokens(examples, total + 1, field)


@pytest.mark.parametrize("shuffle", [False, True])
def test_text_read_in_several_passes_is_counted_in_the_order_it_is_read(tmp_path, shuffle):
    examples, columns = write_examples(tmp_path / "made_up-train-0", 60)
    stream = Stream(examples, passes=3, seed=7, shuffle=shuffle)
    example_at = loader.order(examples, seed=7, shuffle=shuffle)
    cumulated = np.cumsum([0, *(columns["text"][example_at(i)] for i in range(180))])
    assert [stream.tokens(n) for n in range(181)] == cumulated.tolist()
    total = int(cumulated[-1])
    assert total == 3 * stream.in_one_pass
    for tokens in (*range(0, total, 97), total):
        assert stream.examples_for(tokens) == np.searchsorted(cumulated, tokens)
    with pytest.raises(UserError, match=r"in 60 examples, and 3 passes .* again by MAX_EPOCHS"):
        stream.examples_for(total + 1)
    endless = Stream(examples, passes=None, seed=7, shuffle=shuffle)
    assert endless.examples_for(total) == 180 and endless.examples_for(total + 1) == 181


# Damage


def truncate(directory):
    shard = next(directory.glob("part*"))
    os.truncate(shard, shard.stat().st_size - 1)


def flip_a_byte(directory):
    shard = next(directory.glob("part*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 40] ^= 0xFF  # within the records, which stand at the start of the file
    shard.write_bytes(data)


def flip_the_last_bit(directory):
    shard = next(directory.glob("part*"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1  # of what no reader looks at
    shard.write_bytes(data)


def replace_by_zeros(directory):
    shard = next(directory.glob("part*"))
    shard.write_bytes(bytes(shard.stat().st_size))


def change(folder, text=None, at=(), value=None, sealed=False):
    """Makes dataset.json say something else at a place; `sealed`: with the digest of that."""
    path = folder / "dataset.json"
    if text is None:
        meta = json.loads(path.read_text())
        *way, last = at
        functools.reduce(lambda inner, name: inner[name], way, meta)[last] = value
        if sealed:
            meta["dataset_sha256"] = sha256_of(
                {k: v for k, v in meta.items() if k != "dataset_sha256"}
            )
        text = json.dumps(meta)
    path.write_text(text)


@pytest.mark.parametrize(
    "harm, file",
    [
        (truncate, "part-00000-of-00001.array_record"),
        (flip_a_byte, "part-00000-of-00001.array_record"),
        (flip_the_last_bit, "part-00000-of-00001.array_record"),
        (replace_by_zeros, "part-00000-of-00001.array_record"),
        (lambda d: next(d.glob("part*")).unlink(), "part-00000-of-00001.array_record"),
        (lambda d: (d / "vocabulary.model").unlink(), "vocabulary.model"),
        (lambda d: (d / "dataset.json").write_text('{"spec": '), "dataset.json"),
        *((functools.partial(change, text=text), "dataset.json") for text in ("[]", "{}", "", "1")),
        *(
            (functools.partial(change, at=at, value=value), "dataset.json")
            for at, value in (
                (("num_examples",), 999),
                (("num_examples",), None),
                (("tokens", "text"), 1),
                (("tokens", "inputs"), "x"),
                (("tokens",), {}),
                (("knots", "every"), 0),
                (("knots", "text", 3), 10**9),
                (("knots", "text", 0), 5),
                (("knots", "text", 3), 13),  # as it could be
                (("max_lengths", "inputs"), 5),
                (("content_sha256",), "0"),
                (("dataset_sha256",), "0"),
                (("knots", "text"), []),
                (("knots", "segments"), None),
                (("shards", 0, "records"), 999),
                (("shards", 0, "name"), None),
                (("shards",), []),
                (("format",), "2"),
                (("spec_sha256",), "0"),
                (("spec",), []),
                (("truncated",), {"inputs": -1}),
            )
        ),
        (
            functools.partial(change, at=("vocabulary",), value={"sha256": "0"}, sealed=True),
            "vocabulary.model",
        ),
    ],
)
def test_damage_is_one_clear_line(thousand, tmp_path, harm, file):
    copy = tmp_path / thousand.path.name
    shutil.copytree(thousand.path, copy)
    harm(copy)
    with pytest.raises(UserError) as error:
        for _ in loader.eval_batches(Examples(copy), batch_size=10):
            pass
    message = str(error.value)
    assert str(copy / file) in message
    assert f"delete the directory {copy} and materialise it again" in message
    assert "\n" not in message


@pytest.mark.parametrize("small", [True, False])
def test_files_that_changed_places_are_noticed(thousand, tmp_path, monkeypatch, small):
    """Each is a sound file of as many records and bytes as is noted: only its digest is another."""
    monkeypatch.setattr(writer, "PART_BYTES", 1)
    rows = [([7, 8], [9 + i]) for i in range(4)]
    made = made_up.write(tmp_path / "made_up-train-0", rows, lengths=LENGTHS)
    first, second = sorted(made.path.glob("part*"))[:2]
    assert first.stat().st_size == second.stat().st_size
    first.rename(tmp_path / "kept")
    second.rename(first)
    (tmp_path / "kept").rename(second)
    if not small:
        monkeypatch.setattr(provenance, "HASHED_BYTES", 0)
        again = Examples(made.path)  # large ones are compared when they are read
        assert again.read(3)["targets"].tolist() == [12]
    with pytest.raises(UserError, match=f"{first} is not what was written: its digest differs"):
        Examples(made.path).read(0)


def test_a_file_is_compared_once_in_a_process(thousand, monkeypatch):
    Examples(thousand.path)
    monkeypatch.setattr("hashlib.file_digest", None)
    assert Examples(thousand.path).read(5)["inputs"][0] == 15


def test_a_sound_copy_is_read_whole(thousand, tmp_path):
    shutil.copytree(thousand.path, tmp_path / "copy")
    batches = loader.eval_batches(Examples(tmp_path / "copy"), batch_size=10)
    assert sum(rows for _, rows in batches) == 1000


# Finding


def test_of_two_directories_for_one_spec_the_user_chooses(thousand, tmp_path):
    for name in ("made_up-train-a", "made_up-train-b", "made_up-train-c.work"):
        shutil.copytree(thousand.path, tmp_path / name)
    with pytest.raises(UserError) as error:
        find_examples(thousand.spec, tmp_path)
    assert "made_up-train-a" in str(error.value) and "made_up-train-b" in str(error.value)
    assert ".work" not in str(error.value)
    shutil.rmtree(tmp_path / "made_up-train-b")
    assert find_examples(thousand.spec, tmp_path).path == tmp_path / "made_up-train-a"


def test_specs_are_compared_by_meaning():
    plain = DataSpec("t", "train", {"inputs": 8, "targets": 6})
    same = DataSpec("t", "train", {"targets": 6, "inputs": 8}, passes={"t": 1})
    other = DataSpec("t", "train", {"inputs": 8, "targets": 6}, passes={"t": 2})
    assert plain.to_json() == same.to_json() != other.to_json()
    assert DataSpec.from_json(json.loads(json.dumps(other.to_json()))).to_json() == other.to_json()
    with pytest.raises(UserError, match="task, split"):
        DataSpec.from_json({"taks": "t"})


def test_names_that_no_file_can_have():
    with pytest.raises(UserError, match="a name of 300 bytes; expected at most 180"):
        DataSpec("t" * 300, "train", LENGTHS)
    assert len(DataSpec("t" * 180, "train", LENGTHS).stem) < 100


# Mixing and packing


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 100), st.integers(0, 300)), min_size=1, max_size=6))
def test_every_prefix_of_a_mixture_holds_the_rates(components):
    rates, available = zip(*components, strict=True)
    schedule, length, ran_out = interleave(rates, available)
    turns = schedule.turns(0, length)
    given_out = np.zeros(len(rates), int)
    total = sum(rates)
    for n, component in enumerate(turns, start=1):
        given_out[component] += 1
        for rate, count in zip(rates, given_out.tolist(), strict=True):
            assert abs(Fraction(n * rate, total) - count) < 1
        if n % 7 == 0:
            assert schedule.before(n).tolist() == given_out.tolist()
            assert schedule.turn_of(component, given_out[component] - 1) == n - 1
    # It goes on for as long as it can: the one that ran out is used up, none is overdrawn.
    assert given_out[ran_out] == available[ran_out]
    assert all(given_out <= available)


def test_fractional_rates_stay_exact():
    schedule, length, ran_out = interleave([0.3, 0.7], [100_000, 70_000])
    assert ran_out == 1
    assert length == 100_000
    turns = schedule.turns(0, length)
    assert np.cumsum(turns == 0)[9::10].tolist() == list(range(3, 30_001, 3))


@pytest.mark.parametrize("rates", [[1.0, 0.0], [0.0, 0.0], [1.0, -1.0], [1.0, 1e-9]])
def test_rates_that_cannot_be_held_are_refused(rates):
    with pytest.raises(UserError, match="rates"):
        interleave(rates, [10, 10])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 16), st.integers(1, 12)), max_size=80),
    st.integers(1, 8),
)
def test_packing_loses_nothing(sizes, open_rows):
    columns = [np.array([s[f] for s in sizes], int) for f in range(2)]
    rows = pack(columns, [16, 12], open_rows)
    assert sorted(flat(rows)) == list(range(len(sizes)))
    for row in rows:
        assert columns[0][row].sum() <= 16 and columns[1][row].sum() <= 12
    assert pack(columns, [16, 12], open_rows) == rows


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 16), st.integers(1, 12)), max_size=60))
def test_packing_opens_a_row_only_where_nothing_else_fits(sizes):
    columns = [np.array([s[f] for s in sizes], int) for f in range(2)]
    rows = pack(columns, [16, 12], open_rows=len(sizes) + 1)
    for earlier, row in itertools.combinations(rows, 2):
        so_far = [i for i in earlier if i < row[0]] + [row[0]]
        assert columns[0][so_far].sum() > 16 or columns[1][so_far].sum() > 12
