"""Every value that gin binds is compared with its annotation: one line, and what was meant."""

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import pytest

from t5scaling import config, values
from t5scaling.errors import UserError
from tests.conftest import REPOSITORY

FILES = {
    "pretrain": ["gin/models/tiny.gin", "gin/runs/pretrain.gin"],
    "finetune": ["gin/models/tiny.gin", "gin/runs/finetune.gin"],
    "eval": ["gin/models/tiny.gin", "gin/runs/eval.gin"],
    "infer": ["gin/models/tiny.gin", "gin/runs/infer.gin"],
    "quick": ["gin/studies/quick.gin"],
}
WHOLE = ("1e3", "10.5", "ten", "''", "None", "(1,)", "{}", "True", "0", "-1", "@step.Objective()")
PATHS = ("2024", "''", "None", "('a',)", "True", "' '")
LENGTHS = ("128", "(128, 128)", "{}", "{'inputs': 128}", "{'inputs': 0, 'targets': 8}", "None",
           "{'inputs': 1.5, 'targets': 8}", "{'input': 8, 'targets': 8}", "abc",
           "{'inputs': 8_000_000, 'targets': 8}")  # fmt: skip
TRUTHS = ("maybe", "1", "0", "None", "''", "(True,)", "Flase")
WRONG = {
    ("pretrain", "TRAIN_STEPS"): WHOLE,
    ("pretrain", "BATCH_SIZE"): WHOLE,
    ("pretrain", "LOG_EVERY"): WHOLE,
    ("pretrain", "MICROBATCHES"): WHOLE,
    ("pretrain", "STEPS_PER_CALL"): WHOLE,
    ("pretrain", "SEED"): ("-1", "0.5", "x", "2**32", "4294967296", "None"),
    ("pretrain", "CHECKPOINT_STEPS"): ("2", "2,4.5", "(0,)", "(1.5,)", "None", "abc"),
    ("pretrain", "CHECKPOINT_MINUTES"): ("-1", "soon", "None", "True", "1e999"),
    ("pretrain", "BASE_LEARNING_RATE"): ("0", "-1", "fast", "None", "True"),
    ("pretrain", "WARMUP_STEPS"): ("0", "2.5", "x"),
    ("pretrain", "MESH_SHAPE"): ("1", "data", "{'date': 1}", "{'data': 1.5}", "(1, 1, 1)"),
    ("pretrain", "TASK_FEATURE_LENGTHS"): LENGTHS,
    ("pretrain", "TASK_MODULES"): ("tasks.registry", "1", "(1,)", "None"),
    ("pretrain", "TASK_PASSES"): ("2", "{'a': 0}", "{'a': 1.5}"),
    ("pretrain", "MIRRORS"): ("wandb", "('wanbd',)", "None"),
    ("pretrain", "MODEL_DIR"): PATHS,
    ("pretrain", "EXAMPLES_ROOT"): PATHS,
    ("pretrain", "MODEL"): ("tiny", "@network.T5Config", "None", "1"),
    ("pretrain", "SCAN_LAYERS"): TRUTHS,
    ("finetune", "PACK"): TRUTHS,
    ("finetune", "KEEP_CHECKPOINT"): TRUTHS,
    ("finetune", "INITIAL_CHECKPOINT_PATH"): ("''", "200", "False"),
    ("finetune", "METRICS"): ("bleu", "@metrics.bleu", "@metrics.bleu()", "('bleu',)", "None"),
    ("finetune", "DECODER"): ("greedy", "@decoding.Greedy", "@step.Objective()", "None", "1"),
    ("finetune", "MAX_DECODE_LENGTH"): ("0", "-1", "1.5", "100000000"),
    ("finetune", "EVAL_BATCH_SIZE"): WHOLE,
    ("finetune", "MAX_EPOCHS"): ("0", "1.5", "all"),
    ("finetune", "POOL"): ("0", "1.5", "''", "(1,)"),
    ("eval", "STEPS"): ("6", "lst", "(1.5,)", "None", "@decoding.Greedy()"),
    ("eval", "MIXTURE_OR_TASK_NAME"): ("1", "''", "(1,)", "None"),
    ("eval", "EVAL_OUTPUT_DIR"): ("''", "200", "False"),
    ("infer", "VOCABULARY_FILE"): ("''", "200", "False"),
    ("infer", "STEP"): ("lst", "1.5", "(1,)", "all", "None"),
    ("infer", "BEAM_SIZE"): ("2.5", "0", "four", "1_000_000"),
    ("infer", "BEAM_ALPHA"): ("x", "None", "(1,)"),
    ("infer", "PROMPT"): ("3", "None", "('a',)", "True"),
    ("infer", "TOP_K"): ("1.5", "-1", "x"),
    ("infer", "TOP_P"): ("0", "1.5", "x"),
    ("infer", "TEMPERATURE"): ("0", "-1", "hot"),
    ("infer", "INPUT_LENGTH"): ("0", "1e3", "10_000_000"),
    ("infer", "INPUT_FILE"): PATHS,
    ("quick", "STUDY_DIR"): PATHS,
    ("quick", "study.Study.seeds"): ("0", "(0.5,)", "(-1,)", "0,1"),
    ("quick", "study.Study.pretrain_tokens"): ("5", "(1.5,)", "(-1,)"),
    ("quick", "study.Study.pretrain_data"): ("{'a': {'en': 1.5}}", "('a',)", "a"),
    ("quick", "study.Study.learning_rates"): ("0.1", "(0,)", "fast"),
}
CASES = [(*key, value) for key, wrong in WRONG.items() for value in wrong]


@pytest.fixture(autouse=True)
def _in_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


@pytest.mark.parametrize(("kind", "name", "value"), CASES)
def test_a_wrong_value_is_one_line_that_names_it(kind, name, value):
    given = {"MODEL_DIR": "x", "MIXTURE_OR_TASK_NAME": "y", "TRAIN_STEPS": 1}
    with pytest.raises(UserError) as error:
        config.load(
            FILES[kind], {n: v for n, v in given.items() if kind == "pretrain"} | {name: value}
        )
    line = str(error.value)
    assert line.startswith(f"{name} is ") and "; expected " in line and "\n" not in line


def test_there_are_many():
    assert len(CASES) > 200


@pytest.mark.parametrize(
    ("kind", "name", "value", "meant"),
    [
        ("pretrain", "TRAIN_STEPS", "1e3", "1000"),
        ("pretrain", "TRAIN_STEPS", "1,000", "1000"),
        ("pretrain", "TRAIN_STEPS", "0", "1"),
        ("pretrain", "CHECKPOINT_STEPS", "2", "(2,)"),
        ("pretrain", "CHECKPOINT_STEPS", "2,4", "(2, 4)"),
        ("pretrain", "SEED", "-1", "0"),
        ("pretrain", "MESH_SHAPE", "1", "{'data': 1, 'fsdp': 1, 'model': 1}"),
        ("pretrain", "TASK_FEATURE_LENGTHS", "128", "{'inputs': 128, 'targets': 128}"),
        ("pretrain", "TASK_FEATURE_LENGTHS", "(128, 32)", "{'inputs': 128, 'targets': 32}"),
        ("pretrain", "TASK_MODULES", "tasks.registry", "('tasks.registry',)"),
        ("pretrain", "MIRRORS", "wandb", "('wandb',)"),
        ("pretrain", "MODEL_DIR", "2024", "'2024'"),
        ("pretrain", "MODEL", "@network.T5Config", "@network.T5Config()"),
        ("finetune", "METRICS", "@metrics.bleu", "(@metrics.bleu,)"),
        ("finetune", "METRICS", "@metrics.bleu()", "(@metrics.bleu,)"),
        ("finetune", "DECODER", "@decoding.Greedy", "@decoding.Greedy()"),
        ("finetune", "MAX_DECODE_LENGTH", "100000000", "65536"),
        ("finetune", "KEEP_CHECKPOINT", "1", "True"),
        ("eval", "STEPS", "6", "(6,)"),
        ("infer", "BEAM_SIZE", "2.5", "2"),
        ("infer", "PROMPT", "3", "'3'"),
    ],
)
def test_the_nearest_valid_form_is_offered(kind, name, value, meant):
    with pytest.raises(UserError) as error:
        config.load(FILES[kind], {name: value})
    assert str(error.value).endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize(
    ("kind", "name", "given", "value"),
    [
        ("finetune", "PACK", "false", False),
        ("finetune", "KEEP_CHECKPOINT", "No", False),
        ("finetune", "PACK", "ON", True),
        ("pretrain", "SCAN_LAYERS", "True", True),
        ("infer", "PROMPT", "### Instruction: ", "### Instruction: "),
        ("infer", "PROMPT", "1 # one", "1 # one"),
        ("infer", "PROMPT", "true", "true"),
        ("infer", "PROMPT", "#", "#"),
        ("infer", "PROMPT", "a 'quoted' \"word\" # \\ ", "a 'quoted' \"word\" # \\ "),
        ("infer", "PROMPT", "'#'", "#"),
        ("infer", "PROMPT", "two\nlines", "two\nlines"),
        ("infer", "PROMPT", "a, b", "a, b"),
        ("pretrain", "TRAIN_STEPS", "1_000", 1000),
        ("pretrain", "BASE_LEARNING_RATE", "1", 1),
        ("pretrain", "MESH_SHAPE", "None", None),
        ("pretrain", "MODEL_DIR", "~/runs", os.path.expanduser("~/runs")),
        ("finetune", "METRICS", "()", ()),
        ("finetune", "POOL", "1%", "1%"),
        ("eval", "STEPS", "[1, 2]", [1, 2]),
    ],
)
def test_right_values_are_what_they_say(kind, name, given, value):
    text = config.load(FILES[kind], {name: given})
    found = config.macro(name)
    assert found == value and type(found) is type(value)
    config._being_read.clear()
    assert f"{name} = " in text  # and so a run's record has it


@pytest.mark.parametrize("home", ["", "~"])
def test_without_a_home_a_tilde_is_refused(home, monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(UserError, match="no home folder is known for ~; set HOME"):
        config.load(FILES["pretrain"], {"MODEL_DIR": "~/runs"})


def test_all_our_own_gin_files_are_valid():
    for folder, _, names in os.walk("gin/studies"):
        for name in names:
            if name not in ("parts.gin",):
                config.load([os.path.join(folder, name)], {})


# Files


def gin_file(folder, content, name="mine.gin"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_a_byte_order_mark_is_no_text(tmp_path):
    mine = gin_file(tmp_path, b"\xef\xbb\xbfTRAIN_STEPS = 3\n")
    config.load([*FILES["pretrain"], mine], {})
    assert config.macro("TRAIN_STEPS") == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("TRAIN_STEPS = 3\n".encode("utf-16"), "is not UTF-8 text"),
        (b"\x00\x01\xff", "is not UTF-8 text"),
        ("include '{path}'\n", "which never ends"),
        ("TRAIN_STEPS = %TRAIN_STEPS\n", "the value of TRAIN_STEPS names TRAIN_STEPS itself"),
        ("TRAIN_STEPS = %A\nA = (1, %B)\nB = {{1: %A}}\n", "names A itself"),
        ("TRAIN_STEPS = " + "(" * 5000 + "\n", ""),
        ("TRAIN_STEPS = 1" + "0" * 5000 + "\n", ""),
        ("TRAIN_STEPS = 2,4\n", "line 1"),
        ("import no_such_module_here\n", "no_such_module_here"),
        ("include 'no/such.gin'\n", "no/such.gin"),
    ],
)
def test_a_gin_file_that_cannot_be_read_is_one_line(tmp_path, content, words):
    path = str(tmp_path / "mine.gin")
    if isinstance(content, str):
        content = content.format(path=path)
    gin_file(tmp_path, content)
    with pytest.raises(UserError) as error:
        config.load([*FILES["pretrain"], path], {"MODEL_DIR": "x", "MIXTURE_OR_TASK_NAME": "y"})
    assert words in str(error.value) and "\n" not in str(error.value)
    config.load(FILES["pretrain"], {})  # nothing of it is left


def test_gin_files_are_found_from_anywhere_without_a_word(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    config.load(FILES["pretrain"], {})
    said = capsys.readouterr()
    assert not said.out + said.err and not caplog.records


# Annotations


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (values.Positive, "a whole number from 1 up"),
        (values.Positive | None, "a whole number from 1 up or None"),
        (values.PositiveNumber, "a number above 0"),
        (values.Length, "a whole number from 1 to 65,536"),
        (Annotated[float, values.Bounds(0, 1, above=True)], "a number above 0 and up to 1"),
        (values.Path | None, "a path or None"),
        (Sequence[int] | Literal["last", "all"], "a list of whole numbers or 'last' or 'all'"),
        (Mapping[str, int], "a map of texts to whole numbers"),
        (bool, "True or False"),
    ],
)
def test_annotations_in_words(annotation, words):
    assert values.describe(annotation) == words
