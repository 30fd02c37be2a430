"""Examples as a SeqIO task: the batches that stock T5X would see are those of our loop."""

import numpy as np
import pytest

from t5scaling.data import loader
from t5scaling.errors import UserError
from tests import made_up

seqio = pytest.importorskip("seqio")
from t5scaling.data import as_seqio  # noqa: E402 (imports SeqIO)

LENGTHS = {"inputs": 12, "targets": 9}


@pytest.fixture(autouse=True)
def any_vocabulary(monkeypatch):
    """That of made-up examples is not a SentencePiece model."""
    monkeypatch.setattr(as_seqio, "vocabulary", lambda _: seqio.PassThroughVocabulary(8000))


def write(path, packed):
    """50 rows; `packed`, of several segments each."""
    rng = np.random.default_rng(7)
    count = 150 if packed else 50
    sizes = rng.integers(1, 6 if packed else 10, (count, 2))
    rows = [[rng.integers(3, 8000, size).tolist() for size in pair] for pair in sizes]
    return made_up.write(path, rows, lengths=LENGTHS, packed=packed)


def batches(task, packed, batch_size, count, shard=None):
    """As T5X asks for them (t5x.utils.get_dataset_inner)."""
    dataset = seqio.get_dataset(
        task,
        as_seqio.feature_lengths(LENGTHS, packed),
        dataset_split=as_seqio.SPLIT,
        shuffle=False,
        num_epochs=None,
        feature_converter=as_seqio.feature_converter(packed)(pack=False),
        shard_info=shard,
        seed=0,
        batch_size=batch_size,
    )
    return list(dataset.take(count).as_numpy_iterator())


@pytest.mark.parametrize("packed, shuffle, start", [(False, False, 0), (True, True, 3)])
def test_batches_are_those_of_our_loop(tmp_path, packed, shuffle, start):
    examples = write(tmp_path / "made_up-train-0", packed)
    order = dict(seed=5, shuffle=shuffle)
    ours = loader.train_batches(
        examples, batch_size=8, last=41, start_step=start, num_steps=9, **order
    )  # into the second pass over the pool
    task = as_seqio.register(
        str(examples.path), batch_size=8, rows=41, first_step=start, last_step=start + 9, **order
    )
    theirs = batches(task, packed, 8, 9)
    for mine, other in zip(ours, theirs, strict=True):
        assert set(other) - set(mine) == ({"encoder_positions", "decoder_positions"} if packed
                                          else set())  # fmt: skip
        # SeqIO shifts the end of a sequence into the padding after it, which nothing looks at.
        seen = mine["decoder_loss_weights"] > 0
        other["decoder_input_tokens"] = other["decoder_input_tokens"] * seen
        for name, values in mine.items():
            np.testing.assert_array_equal(other[name], values, err_msg=name)


def test_hosts_share_the_rows_of_a_batch(tmp_path):
    examples = write(tmp_path / "made_up-train-0", packed=False)
    (whole,) = loader.train_batches(examples, batch_size=8, num_steps=1)
    task = as_seqio.register(str(examples.path), batch_size=8, rows=50, first_step=0, last_step=1)
    for host in range(2):
        (part,) = batches(task, False, 4, 1, seqio.ShardInfo(index=host, num_shards=2))
        rows = whole["encoder_input_tokens"][host::2]
        np.testing.assert_array_equal(part["encoder_input_tokens"], rows)


def test_another_number_of_devices_is_refused(tmp_path):
    with pytest.raises(UserError, match="for 7 devices, and there are 2"):
        as_seqio.register("", batch_size=8, rows=1, first_step=0, last_step=1, devices=7)
