"""The doctor: what it finds missing or old, and a self-test that can fail."""

import dataclasses
import importlib.metadata
import math
import re
import shutil
import subprocess
import sys
import types
from importlib import util

import jax
import numpy as np
import pytest

from t5scaling import compilation, doctor, self_test
from t5scaling.model import attention, network
from t5scaling.training import step, throughput
from tests.conftest import REPOSITORY
from tests.test_imports import imports, sources

SMALL = self_test.Workload(
    network.T5Config(128, 32, 2, 16, 1, 1, 64, dropout_rate=0.0), rows=4, input_len=16, target_len=8
)
# Module -> the distributions it may be from.
OWNERS = {name: set(found) for name, found in importlib.metadata.packages_distributions().items()}
GOOD = self_test.Result(
    parameters=1,
    losses=(8.0, 5.0, 4.0),
    compile_s=1.0,
    from_cache=False,
    steps_per_s=1.0,
    positions_per_s=1.0,
    model_tflops_per_s=1.0,
    peak_share=0.5,
    repeats=True,
    product_errors=(4e-7, 4e-7),
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
    monkeypatch.setattr(self_test, "default_workload", lambda platform, memory: SMALL)

    def call():
        passed = doctor.doctor(str(tmp_path / "examples"))
        return passed, capsys.readouterr().out

    return call


def line_of(shown, start):
    """The columns of the table row that begins with `start`."""
    (line,) = [x for x in shown.splitlines() if re.split(r"\s{2,}", x.strip())[0] == start]
    return re.split(r"\s{2,}", line.strip())


# --- packages -------------------------------------------------------------------------------------


def test_requirements_are_those_of_pyproject_toml():
    found = doctor.requirements()
    assert {"numpy", "scipy", "pandas"} <= found[""].keys()
    assert {"jax", "flax"} <= found["train"].keys() and {"seqio", "tensorflow"} <= found[
        "data"
    ].keys()
    assert found["train"]["orbax-checkpoint"].startswith(">=0.")
    assert {"pytest", "hypothesis", "ruff"} <= found["test"].keys()


def test_requirements_of_an_installed_package_come_from_its_metadata(monkeypatch, tmp_path):
    lines = [
        "numpy>=2.0", "jax[tpu]; extra == 'tpu'", 'pytest>=8.0; extra == "test"',
        "t5scaling[train]; extra == 'test'",
    ]  # fmt: skip
    monkeypatch.setattr(doctor, "REPOSITORY", tmp_path)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    assert doctor.requirements() == {
        "": {"numpy": ">=2.0"}, "tpu": {"jax": ""}, "test": {"pytest": ">=8.0"}
    }  # fmt: skip


def test_every_package_that_the_code_imports_is_known():
    names = {name.lower().replace("_", "-") for name in doctor.versions_wanted()}
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
        ("seqio", "materialize; train and study without examples", '--editable ".[data]"'),
        ("flax", "train, eval, infer, plan", '--editable ".[train]"'),
        ("scipy", "fit, report", '"scipy>='),
        ("libtpu", "TPUs; plan for their topologies", '--editable ".[tpu]"'),
        (
            "jax-cuda13-plugin",
            "plan for GPUs that this machine does not have",
            '--editable ".[plan-gpu]"',
        ),
        ("importlib_resources", "materialize; train and study without examples", '".[data]"'),
        ("apache-beam", "materialize on Apache Beam", '--editable ".[beam]"'),
        ("gcsfs", "directories in a bucket, gs://", '--editable ".[gcs]"'),
        ("ruff", "make test", '--editable ".[test]"'),
        ("torch", "benchmarks against Hugging Face", '--editable ".[bench]"'),
    ],
)
def test_what_is_missing_for_which_purpose(installed, package, purpose, command):
    installed[package] = None
    found = {p.name: p for p in doctor.purposes()}[purpose]
    lacking = [p for p in doctor.look_up(found.packages, doctor.versions_wanted()) if p.problem]
    assert package in [p.name for p in lacking]
    assert command in doctor.install_command(found, lacking)


def of_study():
    """The packages that a study needs."""
    return {name for extra in ("", "train", "data") for name in doctor.requirements()[extra]}


def test_every_package_of_a_study_has_a_purpose():
    listed = {name for purpose in doctor.purposes() for name in purpose.packages}
    # Packaging is for the doctor, fsspec for etils.
    assert of_study() - listed == {"packaging"}


def test_training_imports_no_other_package(mini_root, tmp_path):
    others = of_study() - set(doctor.TRAIN) - {"packaging", "fsspec"}
    assert {"importlib_resources", "matplotlib", "pandas", "scipy", "tensorflow"} <= others
    blocked = [module for module, owners in OWNERS.items() if others & owners]
    assert "tensorflow_text" in blocked
    code = f"""
import sys
sys.modules.update(dict.fromkeys({blocked}))
from pathlib import Path
from t5scaling import compilation
compilation.prepare()
from t5scaling import self_test
from t5scaling.evaluation import evaluate, infer
from t5scaling.study import plan, runner
from t5scaling.study.executors import local
from tests import mini
mini.train(Path({str(tmp_path)!r}), {mini_root!r}, train_steps=2)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "DONE").exists()


def test_a_table_needs_the_main_packages_alone(tmp_path):
    found = doctor.requirements()
    main = {name.partition("[")[0] for name in found[""]}
    others = set().union(*(found[extra] for extra in ("train", "data", "beam", "gcs"))) - main
    blocked = [module for module, owners in OWNERS.items() if owners <= others]
    assert {"jax", "flax", "gin", "tensorflow", "seqio"} <= set(blocked)
    table = tmp_path / "table.csv"
    table.write_text("x,y\n1,5\n2,4\n4,3.3\n8,2.9\n16,2.5\n")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({blocked}))
from t5scaling.command_line import main
table = {str(table)!r}
for verb, *flags in (["fit"], ["advise"], ["figures", {f"--output={tmp_path}"!r}]):
    assert main([verb, table, *flags]) == 0
assert main(["train", "--gin_file=gin/models/tiny.gin"]) == 2
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train needs the Python package" in done.stderr and "t5scaling[train]" in done.stderr


# --- self-test ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gib", "rows"), [(None, 32), (18, 32), (12, 16), (6, 8), (3, 4)])
def test_the_workload_is_one_for_the_device(gib, rows):
    memory = gib and int(gib * 2**30)
    workload = self_test.default_workload("gpu", memory)
    assert (workload.rows, workload.input_len, workload.target_len) == (rows, 512, 128)
    assert workload.config.dtype == "bfloat16"


def test_a_cpu_and_the_smallest_cards_have_a_smaller_one():
    small = self_test.default_workload("cpu", None)
    assert small.config.dtype == "float32" and small.input_len == 128
    assert self_test.default_workload("gpu", 2**30) == small


def test_the_memory_that_a_device_has_for_us(monkeypatch):
    assert self_test.this_device() == ("cpu", None)
    stats = {"bytes_limit": 60 << 30, "bytes_in_use": 2 << 30}
    device = types.SimpleNamespace(memory_stats=lambda: stats)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert self_test.this_device() == ("gpu", 58 << 30)


@pytest.mark.parametrize(("setting", "gpu"), [("auto", "fused"), ("plain", "plain")])
def test_the_attention_of_both_kinds_of_rows(monkeypatch, setting, gpu):
    config = self_test.default_workload("gpu", None).config
    config = dataclasses.replace(config, attention=setting)
    for platform, backend in (("gpu", gpu), ("cpu", "plain")):
        choices = self_test.attention_choices(config, platform)
        assert {c.backend for c in choices.values()} == {backend}
    asked = []
    monkeypatch.setattr(attention, "choose", lambda config, **about: asked.append((config, about)))
    self_test.attention_choices(config, "gpu")
    about = {"platform": "gpu", "capability": None}
    assert asked == [(config, {**about, "packed": packed}) for packed in (False, True)]


@pytest.mark.parametrize(
    ("mantissa_bits", "low", "high", "words"),
    [(23, 1e-8, 1e-6, "does so too"), (10, 1e-4, 5e-4, "to TF32"), (7, 1e-3, 4e-3, "to bfloat16")],
)
def test_float32_products_are_measured(monkeypatch, mantissa_bits, low, high, words):
    real, dropped = jax.numpy.matmul, 23 - mantissa_bits

    def rounded(x):
        bits = x.view(np.uint32).astype(np.uint64) + (1 << dropped >> 1)
        return (bits >> dropped << dropped).astype(np.uint32).view(np.float32)

    def matmul(a, b, precision):
        return real(a, b) if precision == "highest" else real(rounded(a), rounded(b))

    monkeypatch.setattr(jax.numpy, "matmul", matmul)
    highest, default = self_test.product_errors()
    assert 1e-8 < highest < 1e-6 and low < default < high
    assert words in doctor.products_in_words((highest, default))


@pytest.fixture(scope="module")
def result():
    return self_test.run(SMALL, steps=10)


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
        ({"product_errors": (3e-4, 3e-4)}, "a relative error of 3.0e-04 at JAX's highest"),
        ({"product_errors": (math.nan, 4e-7)}, "a relative error of nan"),
    ],
)
def test_what_fails_the_self_test(changes, expected):
    assert not GOOD.failures()
    (failure,) = dataclasses.replace(GOOD, **changes).failures()
    assert expected in failure


@pytest.fixture
def cached(monkeypatch):
    """Sets what is in the compilation cache before and after the step is compiled."""

    def set_entries(before, after):
        entries = iter([before, after])
        monkeypatch.setattr(self_test, "_cache_entries", lambda: next(entries))

    return set_entries


def test_a_step_that_does_not_learn_fails_it(monkeypatch, cached):
    """(Nothing was added to the cache: the step was loaded from it.)"""
    monkeypatch.setattr(self_test, "LEARNING_RATE", 0.0)
    cached(before={"a"}, after={"a"})
    found = self_test.run(SMALL, steps=3)
    (failure,) = found.failures()
    assert "the loss does not fall" in failure and found.from_cache


@pytest.mark.parametrize(("before", "after"), [({"a"}, {"a", "b"}), (set(), set())])
def test_initialisation_that_is_not_the_same_twice_fails_it(monkeypatch, cached, before, after):
    """(And a step that was compiled, or for which there is no cache, was not loaded from it.)"""
    real, seeds = step.jit_init, iter(np.arange(2, dtype=np.uint32))
    monkeypatch.setattr(step, "jit_init", lambda *a: lambda _: real(*a)(next(seeds)))
    cached(before, after)
    found = self_test.run(SMALL, steps=3)
    (failure,) = found.failures()
    assert "different parameters" in failure and not found.from_cache


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
    assert line_of(shown, "the 10 steps repeat bit for bit")[1] == "yes"
    assert line_of(shown, "rows of each device")[1] == "4 of 16 + 8 positions, float32"
    assert line_of(shown, "float32 products")[1].startswith(
        "float32 models take them in full float32"
    )
    for kind in ("unpacked rows", "packed rows"):
        backend, reason = line_of(shown, kind)[1:]
        assert backend == "plain" and "cpu" in reason


def test_the_peak_is_named_that_its_share_is_of(examine, monkeypatch):
    fast = dataclasses.replace(GOOD, model_tflops_per_s=346.15, peak_share=0.35)
    monkeypatch.setattr(self_test, "run", lambda workload: fast)
    _, shown = examine()
    assert line_of(shown, "share of the devices' peak")[1] == "35.0% of 989 TFLOP/s"


def test_accelerators_are_shown_with_their_memory(examine, monkeypatch):
    stats = {"bytes_limit": 32 << 30, "bytes_in_use": 3 << 20}
    tpu = types.SimpleNamespace(platform="tpu", device_kind="TPU v4", memory_stats=lambda: stats)
    monkeypatch.setattr(jax, "devices", lambda: [tpu] * 4)
    monkeypatch.setattr(self_test, "run", lambda workload: GOOD)
    _, shown = examine()
    assert line_of(shown, "4 x TPU v4")[1:] == ["tpu", "32.00 GiB each, 3.00 MiB in use"]


def test_a_gpu_that_jax_does_not_use_is_told(examine, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(self_test, "run", lambda workload: GOOD)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    _, shown = examine()
    assert f'580 or newer, it takes CUDA 13:\n  {doctor.INSTALL} --editable ".[gpu]"\n' in shown
    assert f'CUDA 12:\n  {doctor.INSTALL} --editable ".[cuda12]"\n' in shown


def test_a_gpu_that_jax_is_kept_from_needs_no_package(examine, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(self_test, "run", lambda workload: GOOD)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    _, shown = examine()
    assert "there is an NVIDIA GPU that JAX does not use, as JAX_PLATFORMS is 'cpu'\n" in shown
    assert "[gpu]" not in shown


def test_an_old_version_is_flagged(examine, installed, monkeypatch):
    monkeypatch.setattr(self_test, "run", lambda workload: GOOD)
    installed["optax"] = "0.1.9"
    passed, shown = examine()
    assert line_of(shown, "optax")[-1].endswith("0.1.9 is not >=0.2.4")
    assert line_of(shown, "train, eval, infer, plan")[1] == "optax 0.1.9 is not >=0.2.4"
    assert f'{doctor.INSTALL} --editable ".[train]"' in shown
    assert passed


def test_a_missing_package_of_training_fails(examine, installed, monkeypatch):
    installed["flax"] = None
    monkeypatch.setattr(self_test, "run", lambda _: pytest.fail("no self-test without flax"))
    passed, shown = examine()
    assert not passed and "self-test not run: flax missing" in shown
    assert line_of(shown, "flax")[-1] == "missing"


def test_materialisation_may_be_missing(examine, installed, monkeypatch):
    monkeypatch.setattr(self_test, "run", lambda workload: GOOD)
    installed.update(dict.fromkeys(doctor.MATERIALIZE))
    passed, shown = examine()
    assert passed
    purpose = "materialize; train and study without examples"
    assert line_of(shown, purpose)[1] == ", ".join(doctor.MATERIALIZE)


def test_the_analysis_may_be_missing(examine, installed, monkeypatch):
    monkeypatch.setattr(self_test, "run", lambda workload: GOOD)
    installed.update(dict.fromkeys(("matplotlib", "pandas", "scipy")))
    passed, shown = examine()
    assert passed and "self-test passed" in shown
    assert line_of(shown, "fit, report")[1] == "matplotlib, pandas, scipy"
    assert line_of(shown, "train, eval, infer, plan")[1] == "nothing"


def test_without_rich_one_line_says_so(monkeypatch, capsys):
    real = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "rich" else real(name))
    assert not doctor.doctor()
    assert (
        capsys.readouterr().out == f"missing: rich; install with: {doctor.INSTALL} --editable .\n"
    )


def test_a_self_test_that_breaks_is_told_in_one_line(examine, monkeypatch):
    def broken(workload):
        raise RuntimeError("out of [memory]\nand a long trace")

    monkeypatch.setattr(self_test, "run", broken)
    passed, shown = examine()
    assert not passed
    assert shown.splitlines()[-1] == "self-test failed: RuntimeError: out of [memory]"


def test_a_self_test_that_fails_is_told(examine, monkeypatch):
    bad = dataclasses.replace(GOOD, losses=(1.0, math.inf))
    monkeypatch.setattr(self_test, "run", lambda workload: bad)
    passed, shown = examine()
    assert not passed and "self-test failed: a loss is not finite" in shown
    assert "self-test passed" not in shown
