"""The doctor: what it finds missing or old, and a self-test that can fail."""

import dataclasses
import importlib.metadata
import math
import re
import shutil
import sys
import types
from importlib import util

import jax
import numpy as np
import pytest

from t5scaling import compilation, doctor
from t5scaling.model import network
from t5scaling.training import step, throughput
from tests.conftest import REPOSITORY
from tests.test_imports import imports, sources

SMALL = doctor.Workload(
    network.T5Config(128, 32, 2, 16, 1, 1, 64, dropout_rate=0.0), rows=4, input_len=16, target_len=8
)
GOOD = doctor.SelfTest(
    parameters=1,
    losses=(8.0, 5.0, 4.0),
    compile_s=1.0,
    from_cache=False,
    steps_per_s=1.0,
    positions_per_s=1.0,
    model_tflops_per_s=1.0,
    peak_share=0.5,
    repeats=True,
)


@pytest.fixture
def installed(monkeypatch):
    """Package -> version that importlib.metadata is to report, None for a missing one."""
    changes, real = {}, importlib.metadata.version

    def version(name):
        if name in changes and changes[name] is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return changes[name] if name in changes else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    return changes


@pytest.fixture
def examine(monkeypatch, capsys, tmp_path):
    """Calls the doctor, with a small self-test and a compilation cache that is left alone."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(compilation, "prepare", lambda: str(tmp_path))
    monkeypatch.setattr(doctor, "default_workload", lambda backend: SMALL)

    def call():
        passed = doctor.doctor(str(tmp_path / "examples"))
        return passed, capsys.readouterr().out

    return call


def line_of(shown, start):
    """The columns of the table row that begins with `start`."""
    (line,) = [x for x in shown.splitlines() if re.split(r"\s{2,}", x.strip())[0] == start]
    return re.split(r"\s{2,}", line.strip())


# --- packages -------------------------------------------------------------------------------------


def test_requirements_are_those_of_setup_py():
    main, extras = doctor.requirements()
    assert {"jax", "flax", "seqio", "tensorflow"} <= main.keys()
    assert main["orbax-checkpoint"].startswith(">=0.")
    assert {"pytest", "hypothesis", "ruff"} <= extras.keys() and not extras.keys() & {"flax"}


def test_requirements_of_an_installed_package_come_from_its_metadata(monkeypatch, tmp_path):
    lines = ["jax>=0.5.0", "jax[tpu]; extra == 'tpu'", "pytest>=8.0; extra == 'test'"]
    monkeypatch.setattr(doctor, "REPOSITORY", tmp_path)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    assert doctor.requirements() == ({"jax": ">=0.5.0"}, {"jax": "", "pytest": ">=8.0"})


def test_every_package_that_the_code_imports_is_known():
    main, extras = doctor.requirements()
    names = {name.lower().replace("_", "-") for name in main | extras}
    distributions = importlib.metadata.packages_distributions()
    for path in [*sources("t5scaling"), *sources("tasks")]:
        for module in {module.split(".")[0] for module in imports(path)}:
            if module in distributions and module not in {"t5scaling", "tasks", "libtpu"}:
                owners = {name.lower().replace("_", "-") for name in distributions[module]}
                assert owners & (names | {"packaging", "jaxlib"}), f"{path}: {module}"


def test_versions(installed):
    installed.update({"jax": "0.4.38", "flax": None, "grain": "0.3.0rc1"})
    wanted = {"jax": ">=0.5.0", "flax": ">=0.10.2", "grain": ">=0.2.10"}
    jax_, flax, grain = doctor.look_up(wanted, wanted)
    assert jax_.problem == "0.4.38 is not >=0.5.0"
    assert flax.problem == "missing" and flax.known_good
    assert grain.problem == ""


@pytest.mark.parametrize(
    ("package", "purpose", "command"),
    [
        ("seqio", "materialize; train and study without examples", '"seqio>='),
        ("scipy", "fit, report", '"scipy>='),
        ("libtpu", "TPUs; plan for their topologies", '--editable ".[tpu]"'),
        ("jax-cuda13-plugin", "plan for GPUs that are not here", '--editable ".[plan-gpu]"'),
        ("apache-beam", "materialize on Apache Beam", '--editable ".[beam]"'),
        ("ruff", "make test", '--editable ".[test]"'),
        ("torch", "benchmarks against Hugging Face", '--editable ".[bench]"'),
    ],
)
def test_what_is_missing_for_which_purpose(installed, package, purpose, command):
    installed[package] = None
    main, extras = doctor.requirements()
    found = {p.name: p for p in doctor.purposes(main)}[purpose]
    lacking = [p for p in doctor.look_up(found.packages, {**extras, **main}) if p.problem]
    assert package in [p.name for p in lacking]
    assert command in doctor.install_command(found, lacking)


# --- self-test ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result():
    return doctor.self_test(SMALL, steps=10)


def test_the_self_test_trains(result):
    assert not result.failures()
    assert result.parameters == network.count_parameters(SMALL.config)
    assert len(result.losses) == 10
    # At first nothing is known of the vocabulary, then which of its tokens are in use.
    uniform = math.log(SMALL.config.vocab_size)
    assert uniform < result.losses[0] < uniform + 1
    assert 0 < result.losses[-1] < uniform - 1


def test_the_speeds_follow_from_one_another(result):
    rows = SMALL.rows * jax.device_count()
    assert result.positions_per_s == pytest.approx(result.steps_per_s * rows * 24)
    flops = rows * network.model_flops(SMALL.config, 16, 8)
    assert result.model_tflops_per_s * 1e12 == pytest.approx(result.steps_per_s * flops)
    peak = throughput.peak_flops_per_s()
    assert result.peak_share == pytest.approx(result.model_tflops_per_s * 1e12 / peak)
    assert 0 < result.peak_share < 1 and result.compile_s > 0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"losses": (8.0, math.nan, 4.0)}, "a loss is not finite: 8.000, nan, 4.000"),
        ({"losses": (8.0, 7.0, 8.0)}, "does not fall: 8.000 -> 8.000"),
        ({"repeats": False}, "give different parameters"),
    ],
)
def test_what_fails_the_self_test(changes, expected):
    assert not GOOD.failures()
    (failure,) = dataclasses.replace(GOOD, **changes).failures()
    assert expected in failure


def test_a_step_that_does_not_learn_fails_it(monkeypatch):
    monkeypatch.setattr(doctor, "LEARNING_RATE", 0.0)
    (failure,) = doctor.self_test(SMALL, steps=3).failures()
    assert "the loss does not fall" in failure


def test_initialisation_that_is_not_the_same_twice_fails_it(monkeypatch):
    real, seeds = step.jit_init, iter(np.arange(2, dtype=np.uint32))
    monkeypatch.setattr(step, "jit_init", lambda *a: lambda _: real(*a)(next(seeds)))
    (failure,) = doctor.self_test(SMALL, steps=3).failures()
    assert "different parameters" in failure


@pytest.mark.parametrize(
    ("before", "after", "from_cache"),
    [({"a"}, {"a"}, True), ({"a"}, {"a", "b"}, False), (set(), set(), False)],
)
def test_whether_the_step_was_compiled_or_loaded(monkeypatch, before, after, from_cache):
    entries = iter([before, after])
    monkeypatch.setattr(doctor, "_cache_entries", lambda: next(entries))
    assert doctor.self_test(SMALL, steps=2).from_cache == from_cache


# --- the whole ------------------------------------------------------------------------------------


def test_a_healthy_machine(examine):
    heavy = {"seqio", "tensorflow"} & sys.modules.keys()
    passed, shown = examine()
    assert passed and "self-test passed" in shown
    assert {"seqio", "tensorflow"} & sys.modules.keys() == heavy
    assert line_of(shown, "jax")[1] == importlib.metadata.version("jax")
    assert line_of(shown, f"{jax.device_count()} x cpu")[1] == "cpu"
    assert line_of(shown, "examples")[2] == "not there yet"
    assert line_of(shown, "parameters")[1] == f"{network.count_parameters(SMALL.config):,}"
    assert line_of(shown, "the same again, bit for bit")[1] == "yes"


def test_accelerators_are_shown_with_their_memory(examine, monkeypatch):
    stats = {"bytes_limit": 32 << 30, "bytes_in_use": 3 << 20}
    tpu = types.SimpleNamespace(platform="tpu", device_kind="TPU v4", memory_stats=lambda: stats)
    monkeypatch.setattr(jax, "devices", lambda: [tpu] * 4)
    monkeypatch.setattr(doctor, "self_test", lambda: GOOD)
    _, shown = examine()
    assert line_of(shown, "4 x TPU v4")[1:] == ["tpu", "32 GiB each, 3 MiB in use"]


def test_a_gpu_that_jax_does_not_use_is_told(examine, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(doctor, "self_test", lambda: GOOD)
    _, shown = examine()
    assert f'{doctor.INSTALL} --editable ".[gpu]"' in shown


def test_an_old_version_is_flagged(examine, installed):
    installed["optax"] = "0.1.9"
    passed, shown = examine()
    assert line_of(shown, "optax")[-1].endswith("0.1.9 is not >=0.2.4")
    assert line_of(shown, "train, eval, infer, plan")[1] == "optax 0.1.9 is not >=0.2.4"
    assert f'{doctor.INSTALL} "optax>=0.2.4"' in shown
    assert passed


def test_a_missing_package_of_training_fails(examine, installed, monkeypatch):
    installed["flax"] = None
    monkeypatch.setattr(doctor, "self_test", lambda: pytest.fail("no self-test without flax"))
    passed, shown = examine()
    assert not passed and "self-test not run: flax missing" in shown
    assert line_of(shown, "flax")[-1] == "missing"


def test_materialisation_may_be_missing(examine, installed):
    installed.update(dict.fromkeys(doctor.MATERIALIZE))
    passed, shown = examine()
    assert passed
    purpose = "materialize; train and study without examples"
    missing = "seqio, tensorflow, tensorflow-datasets, tensorflow-text"
    assert line_of(shown, purpose)[1] == missing


def test_without_rich_one_line_says_so(monkeypatch, capsys):
    real = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "rich" else real(name))
    assert not doctor.doctor()
    assert (
        capsys.readouterr().out == f"missing: rich; install with: {doctor.INSTALL} --editable .\n"
    )


def test_a_self_test_that_breaks_is_told_in_one_line(examine, monkeypatch):
    def broken():
        raise RuntimeError("out of [memory]\nand a long trace")

    monkeypatch.setattr(doctor, "self_test", broken)
    passed, shown = examine()
    assert not passed
    assert shown.splitlines()[-1] == "self-test failed: RuntimeError: out of [memory]"


def test_a_self_test_that_fails_is_told(examine, monkeypatch):
    bad = dataclasses.replace(GOOD, losses=(1.0, math.inf))
    monkeypatch.setattr(doctor, "self_test", lambda: bad)
    passed, shown = examine()
    assert not passed and "self-test failed: a loss is not finite" in shown
    assert "self-test passed" not in shown
