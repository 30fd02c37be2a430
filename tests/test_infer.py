"""Inference: an answer for each line, in order, also after a kill."""

import json
import os
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from run import main
from t5scaling.data.vocabulary import Vocabulary
from t5scaling.errors import UserError
from t5scaling.evaluation import generate, infer
from t5scaling.model import decoding, network
from t5scaling.training import checkpoint, sharding, step
from tests import mini
from tests.conftest import REPOSITORY

PROMPT = "translate English to German: "
LINES = [
    "Press the key twice.",
    "",
    "Open the file in the editor and save it under another name before you close it.",
    "Print.",
    "The option sets how many lines are shown.",
]


@pytest.fixture(scope="module")
def run(mini_run):
    """A run directory of a model that was trained for a moment."""
    return mini_run


@pytest.fixture
def sentences(tmp_path):
    path = tmp_path / "sentences.txt"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return path


def answer(run, input_file, output_file, **changes):
    arguments = {
        "model_dir": str(run),
        "model": mini.CONFIG,
        "input_file": str(input_file),
        "output_file": str(output_file),
        "prompt": PROMPT,
        "decoder": decoding.Greedy(),
        "input_length": 32,
        "max_decode_len": 6,
        "batch_size": 4,
        "block": 2,
        "progress": lambda *_: None,
    }
    infer.infer(**{**arguments, **changes})


def alone(run, line):
    """The answer to one line, decoded by itself."""
    vocabulary = Vocabulary(run / "vocabulary.model")
    path = str(run / "checkpoints" / f"{checkpoint.PREFIX}_6")
    params = checkpoint.restore_params(
        path, step.abstract_params(mini.CONFIG, sharding.make_layout())
    )
    tokens = vocabulary.encode(PROMPT + line)
    tokens, _ = decoding.greedy(
        network.Transformer(mini.CONFIG),
        params,
        np.pad(tokens, (0, 32 - len(tokens)))[None],  # one program for all lines
        max_decode_len=6,
    )
    return vocabulary.decode(np.asarray(tokens)[0])


def test_every_line_gets_its_own_answer_in_its_place(run, sentences, tmp_path):
    answer(run, sentences, tmp_path / "out.txt")
    got = (tmp_path / "out.txt").read_text(encoding="utf-8").split("\n")
    assert got[:-1] == [alone(run, line) if line else "" for line in LINES] and got[-1] == ""
    assert not (tmp_path / "out.txt.partial").exists()


def test_json_lines_hold_input_and_score(run, sentences, tmp_path):
    answer(run, sentences, tmp_path / "out.jsonl", block=100)
    answer(run, sentences, tmp_path / "out.txt")
    objects = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [o["input"] for o in objects] == LINES
    plain = (tmp_path / "out.txt").read_text().splitlines()
    assert [" ".join(o["prediction"].splitlines()) for o in objects] == plain
    assert all(o["score"] < 0 for o in objects if o["input"])


def test_what_is_sampled_does_not_depend_on_blocks_and_batches(run, sentences, tmp_path):
    # Of few tokens: with thousands of even chance, rounding alone may move a draw to the next one.
    sampling = decoding.Sampling(temperature=1.5, top_k=4, seed=3)
    answer(run, sentences, tmp_path / "a.txt", decoder=sampling, block=2, batch_size=2)
    answer(run, sentences, tmp_path / "b.txt", decoder=sampling, block=5, batch_size=4)
    a, b = ((tmp_path / name).read_text() for name in ("a.txt", "b.txt"))
    assert a == b and len(set(a.splitlines())) > 2


def test_cut_lines_are_counted_and_said(run, sentences, tmp_path, capsys):
    answer(run, sentences, tmp_path / "out.txt", input_length=12)
    vocabulary = Vocabulary(run / "vocabulary.model")
    long = sum(len(vocabulary.encode(PROMPT + line)) > 12 for line in LINES if line)
    assert 0 < long < 4
    assert f"{long} of 5 lines were cut to 12 tokens" in capsys.readouterr().err
    assert json.loads((tmp_path / "out.txt.json").read_text())["truncated"] == long


def test_a_second_launch_finds_it_done_and_other_settings_are_refused(
    run, sentences, tmp_path, capsys
):
    output = tmp_path / "out.txt"
    answer(run, sentences, output)
    made = output.stat().st_mtime_ns
    answer(run, sentences, output)
    assert "already done" in capsys.readouterr().out and output.stat().st_mtime_ns == made
    with pytest.raises(UserError, match="was made with max_decode_len=6, now it is 7"):
        answer(run, sentences, output, max_decode_len=7)
    sentences.write_text("Another.\n", encoding="utf-8")
    with pytest.raises(UserError, match="was made with input_sha256"):
        answer(run, sentences, output)
    other = tmp_path / "mine.txt"
    other.write_text("precious", encoding="utf-8")
    with pytest.raises(UserError, match="is there already"):
        answer(run, sentences, other)
    assert other.read_text() == "precious"


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff", b"{}", b'{"lines": 1, "done": "1"}', b"[" * 100_000,
                b'{"lines": 5, "done": 6, "bytes": 0, "truncated": 0}'],
)  # fmt: skip
def test_a_damaged_record_is_one_line(tmp_path, content):
    (tmp_path / "out.txt.json").write_bytes(content)
    with pytest.raises(UserError, match=r"out\.txt\.json") as error:
        infer._Output(str(tmp_path / "out.txt"), {})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"good\n\xff\xfe bad\n", "line 2: not UTF-8"),
        (b"", "is empty"),
        (None, "cannot read"),
    ],
)
def test_bad_input_files_are_refused(run, tmp_path, content, message):
    path = tmp_path / "sentences.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        answer(run, path, tmp_path / "out.txt")
    assert not list(tmp_path.glob("out*"))


def test_no_such_run_step_or_folder(run, sentences, tmp_path):
    with pytest.raises(UserError, match="is not a run directory"):
        answer(tmp_path / "none", sentences, tmp_path / "out.txt")
    with pytest.raises(UserError, match="no checkpoint of step 9; there: 3, 6"):
        answer(run, sentences, tmp_path / "out.txt", step=9)
    with pytest.raises(UserError, match="no folder"):
        answer(run, sentences, tmp_path / "missing" / "out.txt")


def test_killed_it_goes_on_with_the_next_block(run, tmp_path):
    path = tmp_path / "sentences.txt"
    path.write_text("".join(f"{LINES[i % 5]} {i}\n" for i in range(200)), encoding="utf-8")
    settings = {
        "MODEL_DIR": run, "INPUT_FILE": path, "OUTPUT_FILE": tmp_path / "out.txt",
        "INPUT_LENGTH": 32, "MAX_DECODE_LENGTH": 6, "BATCH_SIZE": 4, "BEAM_SIZE": 2,
        "PROMPT": repr(PROMPT),
    }  # fmt: skip
    command = ["infer", f"--gin_file={REPOSITORY}/tests/mini/model.gin"]
    command += ["--gin_file=gin/runs/infer.gin", "--gin.infer.infer.block=8"]
    command += [f"--gin.{name}={value}" for name, value in settings.items()]
    first = subprocess.Popen([sys.executable, "run.py", *command], cwd=REPOSITORY)
    record = tmp_path / "out.txt.json"
    while not record.exists() and first.poll() is None:
        time.sleep(0.01)
    first.kill()
    first.wait()
    done = json.loads(record.read_text())["done"]
    assert 0 < done < 200, "the kill came too late to show anything"
    with open(tmp_path / "out.txt.partial", "a", encoding="utf-8") as file:
        file.write("half a li")  # as a kill in the middle of a block leaves it
    assert main(command) == 0
    beams = decoding.BeamSearch(beam_size=2)
    answer(run, path, tmp_path / "whole.txt", decoder=beams, block=200)
    assert (tmp_path / "out.txt").read_text() == (tmp_path / "whole.txt").read_text()


def test_wider_batches_change_no_answer(run, sentences, tmp_path, monkeypatch):
    widths = set()
    original = sharding.put_batch

    def watched(batch, layout):
        widths.add(batch["tokens"].shape[1])
        return original(batch, layout)

    monkeypatch.setattr(sharding, "put_batch", watched)
    settings = {"prompt": "", "max_decode_len": 12, "batch_size": 2, "block": 5}
    seen, answers = [], []
    for min_batches in (1, generate.MIN_BATCHES):
        monkeypatch.setattr(generate, "MIN_BATCHES", min_batches)
        widths.clear()
        answer(run, sentences, tmp_path / f"{min_batches}.jsonl", **settings)
        lines = (tmp_path / f"{min_batches}.jsonl").read_text().splitlines()
        answers.append([json.loads(line) for line in lines])
        seen.append(sorted(widths))
    assert seen == [[4, 16, 32], [32]]
    for narrow, wide in zip(*answers, strict=True):
        assert narrow["prediction"] == wide["prediction"]
        assert narrow["score"] == pytest.approx(wide["score"], rel=1e-5)


def test_the_next_batch_is_dispatched_before_one_is_fetched(run):
    events = []

    def decoder(transformer, params, tokens_BxS, *, max_decode_len, eos_id, example_ids):
        """The numbers of the inputs as answers."""
        events.append("dispatch")
        tokens_BxL = jnp.repeat(example_ids[:, None], max_decode_len, axis=1)
        return tokens_BxL, example_ids.astype(jnp.float32)

    layout = sharding.make_layout()
    generator = generate.Generator(
        mini.CONFIG, {}, layout, Vocabulary(run / "vocabulary.model"), decoder,
        input_length=8, max_decode_len=3, batch_size=2,
    )  # fmt: skip
    inputs = [np.full(length, 5) for length in (3, 8, 2, 7, 6)]
    answers = generator(inputs, first_id=100, progress=events.append)
    assert [answer.score for answer in answers] == [100, 101, 102, 103, 104]
    assert events == ["dispatch", "dispatch", 2, "dispatch", 4, 5]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_one_ahead_keeps_the_order(count):
    made = []

    def items():
        for number in range(count):
            made.append(number)
            yield number

    for place, number in enumerate(generate.one_ahead(items())):
        assert number == place and len(made) == min(place + 2, count)
    assert len(made) == count


def test_few_batches_share_a_width():
    def widths(*lengths, min_batches):
        batches = generate.batches_by_length(lengths, 1, min_batches)
        return [width for _, width in batches]

    assert widths(0.9, 0.4, 0.2, 0.1, min_batches=1) == [1.0, 0.5, 0.25, 0.125]
    assert widths(0.9, 0.4, 0.2, 0.1, min_batches=5) == [1.0] * 4
    assert widths(0.2, 0.1, min_batches=5) == [0.25] * 2
    assert widths(0.9, 0.4, 0.2, 0.1, min_batches=2) == [1.0, 1.0, 0.25, 0.25]
    assert widths(0.9, 0.4, 0.1, 0.1, min_batches=2) == [1.0, 1.0, 0.125, 0.125]
    assert widths(0.9, 0.3, 0.3, 0.3, 0.1, min_batches=3) == [1.0, 0.5, 0.5, 0.5, 0.5]
    assert widths(min_batches=2) == []


@pytest.mark.parametrize("size", [1, 3, 8])
def test_batches_by_length_hold_every_row_once(size):
    shares = np.random.default_rng(0).uniform(0.01, 1, 21).tolist()
    batches = list(generate.batches_by_length(shares, size))
    rows = [row for chosen, _ in batches for row in chosen]
    assert sorted(rows) == list(range(21))
    assert [shares[row] for row in rows] == sorted(shares, reverse=True)
    assert all(len(chosen) == size for chosen, _ in batches[:-1])
    for chosen, bucket in batches:
        longest = max(shares[row] for row in chosen)
        assert bucket / 2 < longest <= bucket or bucket == generate.BUCKETS[0]


def test_names_say_what_was_decoded():
    assert decoding.Greedy().name == "greedy"
    assert decoding.BeamSearch().name == "beam4_alpha0.6"
    assert (
        decoding.Sampling(0.7, top_k=40, top_p=0.95, seed=3).name == "sample_top40_p0.95_t0.7_seed3"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: decoding.BeamSearch(beam_size=0), "beam_size is 0"),
        (lambda: decoding.Sampling(temperature=0.0), "temperature is 0.0"),
        (lambda: decoding.Sampling(top_k=-1), "top_k is -1"),
        (lambda: decoding.Sampling(top_p=0.0), "top_p is 0.0"),
        (lambda: decoding.Sampling(top_p=1.5), "top_p is 1.5"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a\nb\n".encode("utf-16"), "line 1: not UTF-8, but UTF-16"),
        ("a\nb\n".encode("utf-16-be"), "line 1: not UTF-8, but UTF-16"),
        (b"a\nb\0c\n", "line 2: not UTF-8"),
        (b"a\n" + b"x" * 200 + b"\n", "line 2: longer than"),
        (b"", "is empty"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, monkeypatch, content, words):
    monkeypatch.setattr(infer, "LINE_BYTES", 100)
    (tmp_path / "in.txt").write_bytes(content)
    with pytest.raises(UserError, match=words):
        infer._scan(str(tmp_path / "in.txt"))


def test_what_cannot_be_read_twice_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null", tmp_path):
        with pytest.raises(UserError, match="is not a file: it is read twice"):
            infer._scan(str(path))


def test_a_byte_order_mark_is_no_part_of_a_line(tmp_path):
    (tmp_path / "in.txt").write_bytes(b"\xef\xbb\xbfone\ntwo\n")
    assert list(infer._blocks(str(tmp_path / "in.txt"), 0, 5)) == [["one", "two"]]
    assert list(infer._blocks(str(tmp_path / "in.txt"), 1, 5)) == [["two"]]


def test_fewer_answers_than_lines_are_no_finished_file(run, sentences, tmp_path, monkeypatch):
    blocks = infer._blocks
    monkeypatch.setattr(infer, "_blocks", lambda *args: list(blocks(*args))[:1])
    with pytest.raises(UserError, match="had 5 lines and gave 2: it was changed on the way"):
        answer(run, sentences, tmp_path / "out.txt")
    assert not (tmp_path / "out.txt").exists()
