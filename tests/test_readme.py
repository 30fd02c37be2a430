"""Every command of the README and of docs/, as typed; on the tests' miniature where it takes long.

A command that can be run nowhere but on a cluster is looked at by `--dry_run`, or its gin files are
read and the test that does run its like is named here.
"""

import importlib
import itertools
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import run
from t5scaling import config, self_test, verbs
from t5scaling.analysis.fitting.fit import fit_curve
from tests.conftest import REPOSITORY
from tests.test_doctor import SMALL

ROOT = Path(REPOSITORY)
DOCUMENTS = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
DOCUMENTS += (
    "CONTRIBUTING.md",
    "results/techdoc/README.md",
    "results/plan/README.md",
    "benchmarks/README.md",
)
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(?:python )?(run\.py [^`]*)`")

MINIATURE = {
    "gin/models/tiny.gin": "tests/mini/model.gin",
    "techdoc_": "mini_",
    "TRAIN_STEPS=60": "TRAIN_STEPS=6",
    "checkpoint_60": "checkpoint_6",
    "TRAIN_STEPS=20": "TRAIN_STEPS=4",
}
MODULES = {"TASK_MODULES": ("tests.mini_tasks",)}
# The shapes of tests/mini/study.gin, which other tests compile too.
SMALLER = {
    "gin/runs/pretrain.gin": {
        **MODULES, "BATCH_SIZE": 8, "TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 24},
    },
    "gin/runs/finetune.gin": {
        **MODULES, "BATCH_SIZE": 4, "EVAL_BATCH_SIZE": 8, "MAX_DECODE_LENGTH": 16,
        "TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 64},
        "EVAL_FEATURE_LENGTHS": {"inputs": 160, "targets": 160},
    },
    "gin/runs/eval.gin": {
        **MODULES, "EVAL_BATCH_SIZE": 8, "MAX_DECODE_LENGTH": 16,
        "EVAL_FEATURE_LENGTHS": {"inputs": 160, "targets": 160},
    },
    "gin/runs/infer.gin": {"INPUT_LENGTH": 32, "MAX_DECODE_LENGTH": 8},
}  # fmt: skip

# Of results/techdoc: balanced data of each pair, and those of its source or another language alone.
PAIRS = {"en_de": "en50_de50", "en_fr": "en50_fr50", "en_ro": "en50_ro50"}
UNMATCHED = {"en_de": ("en", "fr"), "en_fr": ("en", "de"), "en_ro": ("en", "de")}

# What needs more than this machine: part of the command -> the test that runs its like.
ELSEWHERE = {
    "MODEL_DIR=t5_1_1_small": "test_interop.test_eval_takes_a_checkpoint_of_t5x_as_it_is",
    "--topology=v5e:": "test_plan.test_the_child_compiles_for_what_is_described",
    "--topology=h100": "test_plan_gpus.test_the_child_compiles_for_the_card",
    "--coordinator=": "test_distributed.test_two_processes_train_as_one_and_survive_a_kill",
    "--runner=FlinkRunner": "test_beam.test_the_direct_runner_writes_what_this_process_writes",
}


def commands(document):
    """The words of each line of each block of commands."""
    for block in BLOCK.findall((ROOT / document).read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def of(document, *start):
    return [words for words in commands(document) if words[: len(start)] == list(start)]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A user's directory: `run.py` finds gin files beside the user, then in the repository."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def execute(words, root, capsys):
    """`python run.py ...`, as typed where it is quick."""
    text = " ".join(words)
    if elsewhere := [test for part, test in ELSEWHERE.items() if part in text]:
        module, test = elsewhere[0].split(".")
        assert callable(getattr(importlib.import_module(f"tests.{module}"), test))
        gin_files = [word.split("=", 1)[1] for word in words if word.startswith("--gin_file=")]
        if gin_files:  # of `train ...` there are none
            overrides = dict(word[6:].split("=", 1) for word in words if word.startswith("--gin."))
            assert config.load(gin_files, overrides)
        return
    verb, arguments = words[0], words[1:]
    if verb == "study":
        arguments += ["--dry_run", "--gin.STUDY_DIR=runs/study", f"--gin.EXAMPLES_ROOT={root}"]
    elif verb in ("train", "eval", "infer", "plan", "materialize"):
        for name, small in MINIATURE.items():
            arguments = [word.replace(name, small) for word in arguments]
        settings = {}
        for word in arguments:
            settings |= SMALLER.get(word.removeprefix("--gin_file="), {})
        if verb != "infer":
            settings["EXAMPLES_ROOT"] = root
        arguments += [f"--gin.{name}={value}" for name, value in settings.items()]
    try:
        status = run.main([verb, *arguments])
    except SystemExit as end:  # --help
        status = end.code
    out, err = capsys.readouterr()
    assert status == 0, f"python run.py {shlex.join([verb, *arguments])}\n{out}\n{err}"


def test_the_readmes_commands_one_after_the_other(
    here, materialised_here, mini_root, capsys, monkeypatch
):
    # `doctor` trains what test_doctor trains: this machine's own workload takes a minute where
    # programs are not optimised.
    monkeypatch.setattr(self_test, "default_workload", lambda platform, memory: SMALL)
    sizes = np.repeat(1e6 * 2.0 ** np.arange(8), 2)
    factor = np.tile([1.0, 0.8], 8)
    score = factor * (0.5 * np.log(sizes / 1e4)) ** 1.5
    loss = 2 + 40 / sizes**0.25 / factor
    columns = {"tokens": sizes, "loss": loss, "bleu": score, "data": ["de", "fr"] * 8}
    pd.DataFrame(columns).to_csv("results.csv", index=False)
    Path("sentences.txt").write_text("Open the file.\nSave it.\n")

    done = [words[2:] for words in of("README.md", "python", "run.py")]
    for words in done:
        execute(words, mini_root, capsys)
    verbs = {words[0] for words in done}
    assert {"train", "eval", "infer", "study", "plan", "fit", "advise", "figures"} <= verbs

    assert Path("runs/finetune/DONE").exists()
    measured = Path("runs/finetune/eval.jsonl").read_text()
    assert "mini_translate_en_de" in measured and "mini_translate_en_fr" in measured
    assert len(Path("translations.txt").read_text().splitlines()) == 2
    assert list(Path("figures").glob("*.png"))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_there_is_what_commands_name(document):
    """Targets, extras, scripts and files; and no command of a kind that no test looks at."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    for words in commands(document):
        match words:
            case ["make", target]:
                assert target in targets
            case ["pip", "install", *_]:
                assert set(re.findall(r"\[([\w-]+)\]", " ".join(words))) <= extras
            case ["python", "run.py", verb, *_]:
                assert verb in verbs.VERBS or verb == "--help"
            case [".venv/bin/python", "-m", "pytest", *rest]:
                assert all((ROOT / name).is_file() for name in rest if name.endswith(".py"))
            case ["python" | "bash", script, *_]:
                assert (ROOT / script).is_file(), script
            case ["cp", source, _]:
                assert (ROOT / source).is_file(), source
            case ["mkdir" | "tar" | "rm", *_]:
                assert document == "results/techdoc/README.md"  # run below
            case _:
                pytest.fail(f"{document}: no test runs {shlex.join(words)!r}")
    for inline in INLINE.findall((ROOT / document).read_text()):
        assert shlex.split(inline)[1] in (*verbs.VERBS, "VERB", "--help"), inline


def test_a_study_on_cloud_tpu_is_planned(here, mini_root, capsys):
    (words,) = of("docs/cloud_tpu.md", "python", "run.py")
    assert "gin/executors/cloud_tpu.gin" in " ".join(words)
    execute(words[2:], mini_root, capsys)


@pytest.fixture
def registered():
    """What is registered with SeqIO is forgotten at the end."""
    import seqio

    registries = (seqio.TaskRegistry, seqio.MixtureRegistry)
    before = [set(registry.names()) for registry in registries]
    yield
    for registry, names in zip(registries, before, strict=True):
        for name in set(registry.names()) - names:
            registry.remove(name)


def test_a_task_and_a_model_of_your_own(here, materialised_here, registered, mini_root, capsys):
    for _, source, copy in of("docs/extending.md", "cp"):
        shutil.copy(ROOT / source, copy)
    data = here / "data/own"
    data.mkdir(parents=True)
    for language in ("en", "de"):
        lines = [f"Line {i} of a document in {language}, with some words more." for i in range(900)]
        if language == "de":
            (data / "de-1.txt").write_text("\n".join(lines))
        else:
            frame = pd.DataFrame({"text": lines})
            frame.to_json(data / "en-1.jsonl.gz", orient="records", lines=True)
    train, plan = of("docs/extending.md", "python", "run.py")
    execute([*train[2:], "--gin.TRAIN_STEPS=4"], str(here / "examples"), capsys)
    assert (here / "runs/own/DONE").exists()
    Path("wide.gin").write_text((ROOT / "tests/mini/model.gin").read_text())
    execute(plan[2:], mini_root, capsys)


def test_a_law_of_your_own():
    (code,) = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "docs/extending.md").read_text(), re.M | re.DOTALL
    )
    names = {}
    exec(code, names)
    x = 1e5 * 2.0 ** np.arange(8)
    fit = fit_curve(names["RootLaw"](), x, 0.2 * x**0.3, hold_out=2)
    assert fit.coefficients["b"][0] == pytest.approx(0.2, rel=1e-4)
    assert fit.coefficients["c"][0] == pytest.approx(0.3, rel=1e-4)
    assert all(point.predicted == pytest.approx(point.value, rel=1e-4) for point in fit.held_out)
    assert not fit.at_bound


def test_the_commands_beside_the_laws_in_python(here, capsys):
    sizes = 1e6 * 4.0 ** np.arange(5)
    pd.DataFrame({"tokens": sizes, "loss": 2 + 40 / sizes**0.25}).to_csv("results.csv", index=False)
    for words in of("docs/python.md", "python", "run.py"):
        execute(words[2:], "", capsys)


def test_the_numbers_of_our_study_are_those_of_its_files():
    """What README.md says that it found, from what `run.py report results/techdoc` reads and makes;
    of gains: without pretraining less at the largest D_p, means over seeds."""
    found = (ROOT / "README.md").read_text().partition("## What it found so far")[2]
    said = " ".join(found.partition("\n## ")[0].split())
    results = ROOT / "results/techdoc"
    runs = [json.loads(line) for line in (results / "runs.jsonl").read_text().splitlines()]
    assert all(run["done"] for run in runs)
    hours = sum(run["device_s"] for run in runs) / 3600
    assert f"{len(runs)} runs, {hours:.1f} hours of one CPU core" in said

    curves = {}
    for curve in json.loads((results / "fits.json").read_text())["curves"]:
        place = curve["task"][-5:], curve["metric"], curve["finetune_examples"]
        curves.setdefault(place, {})[curve["pretrain_data"].removeprefix("techdoc_span_")] = curve
    pools = {pair: sorted({p for task, _, p in curves if task == pair}) for pair in PAIRS}
    smallest, _, largest = zip(*pools.values(), strict=True)
    for few in (smallest, largest):
        assert f"{min(few):,} to {max(few):,} pairs" in said

    def gain(pair, pool, data):
        curve = curves[pair, "cross_entropy", pools[pair][pool]][data]
        end = max(p["x"] for p in curve["points"])
        best = [p["value"] for p in curve["points"] if p["x"] == end]
        return curve["baseline"] - sum(best) / len(best)

    de, fr, ro = ([gain(pair, pool, data) for pool in range(3)] for pair, data in PAIRS.items())
    assert (
        f"take {de[0]:.1f} nats off each target token in en-de and {fr[0]:.1f} in en-fr, 2M take "
        f"{ro[0]:.1f} in en-ro"
    ) in said
    others = [gain(pair, 0, data) for pair, kinds in UNMATCHED.items() for data in kinds]
    assert f"{min(others):.1f} to {max(others):.1f}" in said
    assert f"the gain is {de[1]:.1f}, {fr[1]:.1f} and {ro[1]:.1f} nats" in said
    assert f"takes {-ro[2]:.1f} to {-de[2]:.1f} nats more" in said
    baselines = [
        curves[pair, "bleu", pools[pair][2]][data]["baseline"] for pair, data in PAIRS.items()
    ]
    assert "BLEU {:.1f}, {:.1f} and {:.1f}".format(*baselines) in said
    page = (results / "report.html").read_text()
    worth = [float(times) for times in re.findall(r"is worth ([\d.]+) \(", page)]
    few, more = worth[::2], worth[1::2]  # of each pair the two smaller pools
    assert len(few) == len(more) == 3
    assert (
        f"worth {min(few):.0f} to {max(few):.0f} times the pairs where there are about 600, and "
        f"{min(more):.1f} to {max(more):.1f} times where there are ten times as many"
    ) in said


def test_the_numbers_of_our_study_of_bleu_are_those_of_its_files():
    """What README.md says of results/transfer, from what its report is made of."""
    found = (ROOT / "README.md").read_text().partition("A second study asks about it")[2]
    said = " ".join(found.partition("\n## ")[0].split())
    results = ROOT / "results/transfer"
    findings = json.loads((results / "findings.json").read_text())
    runs = (results / "runs.jsonl").read_text().splitlines()
    assert f"en-fr and en-de, {sum(json.loads(run)['done'] for run in runs)} runs" in said
    curves = [
        curve
        for curve in json.loads((results / "fits.json").read_text())["curves"]
        if curve["model"] == "mini" and curve["pretrain_data"] == "techdoc_span_en50_fr50"
    ]
    losses = {c["finetune_examples"]: c for c in curves if c["metric"] == "cross_entropy"}
    bleu = {c["finetune_examples"]: c["baseline"] for c in curves if c["metric"] == "bleu"}
    few, more, every = sorted(losses)
    assert (
        f"{few:,} pairs reach BLEU {bleu[few]:.1f}, {more:,} reach {bleu[more]:.1f} and {every:,} "
        f"reach {bleu[every]:.1f}"
    ) in said

    means = {x: [p["value"] for p in losses[few]["points"] if p["x"] == x]
             for x in sorted({p["x"] for p in losses[few]["points"]})}  # fmt: skip
    falling = [sum(values) / len(values) for values in means.values()]
    steps = [late - soon for soon, late in itertools.pairwise(falling)]
    assert len(steps) == 5 and steps == sorted(steps, reverse=True) and steps[0] < 0
    assert f"by {losses[few]['baseline'] - falling[-1]:.2f} nats" in said
    (compared,) = (c for c in findings["comparisons"] if c["metric"] == "cross_entropy")
    errors = {family["law"]: family["rms_log_error"] for family in compared["families"]}
    assert compared["winner"] == "onset"
    assert (
        f"an error of {100 * errors['onset']:.1f} %, the paper's law, which levels off, of "
        f"{100 * errors['power']:.1f} %"
    ) in said

    shapes = [
        curve["shape"]
        for curve in findings["curves"]
        if curve["metric"] == "bleu" and curve["place"]["model"] == "mini"
    ]
    assert len(shapes) == 10 and shapes.count("inverse") == 7 and shapes.count("trendless") == 3
    assert "of ten curves none gets better and seven get worse" in said
    slopes = {
        (place["model"], place["task"][-5:], place["finetune_examples"]): choice["ways"][0]
        for choice in findings["steps"]
        if (place := choice["place"])["pretrain_data"].startswith("techdoc_span_en50")
    }
    for place, sentence in (
        (("mini", "en_fr", few), "adds {:.2f} (90 % interval {:.2f} to {:.2f}) in en-fr and"),
        (("mini", "en_de", 5_970), "and {:.2f} ({:.2f} to {:.2f}) in en-de."),
        (("tiny", "en_fr", few), "2.9M parameters, a tenfold D_p adds {:.2f} ({:.2f} to {:.2f})."),
    ):
        way = slopes[place]
        assert sentence.format(way["slope"], way["low"], way["high"]) in said
    (claim,) = (claim for claim in findings["claims"] if claim["letter"] == "b")
    assert claim["answer"] == "yes"
    costs = {
        found["pair"]: -[n["value"] for n in found["numbers"] if n["metric"] == "bleu"][-1]
        for found in claim["findings"]
    }
    assert f"cost {costs['en-fr']:.2f} BLEU in en-fr and {costs['en-de']:.2f} in en-de" in said


def test_our_study_goes_on_where_it_was(here, mini_root, capsys):
    """Unpacked, its finetunings are done and its pretrainings, without checkpoints, are not."""
    shutil.copytree(ROOT / "results/techdoc", "results/techdoc")
    *shell, study = commands("results/techdoc/README.md")
    for words in shell:
        subprocess.run(words, check=True)
    assert not Path("runs/techdoc/runs/pretrain").exists()
    records = map(json.loads, Path("results/techdoc/runs.jsonl").read_text().splitlines())
    finetuned = {r["id"] for r in records if r["done"] and r["record"]["kind"] == "finetune"}
    there = Path("runs/techdoc/runs").rglob("DONE")
    assert {str(path.parent.relative_to("runs/techdoc/runs")) for path in there} == finetuned
    execute(study[2:], mini_root, capsys)
