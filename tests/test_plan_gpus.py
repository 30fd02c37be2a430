"""Promises of a plan for GPUs that this machine does not have: names, memory, one clear line for
what is missing, and, where JAX's CUDA plugin is installed, a step and attention kernels compiled
for an H100."""

import dataclasses
import importlib.util
import io
import json
import logging
import os
import subprocess
import sys
import types
from importlib import metadata

import jax
import pytest

from t5scaling import compilation, nvidia
from t5scaling.errors import UserError
from t5scaling.study import ahead_of_time, gpus, plan, suggest, topologies
from t5scaling.training import throughput
from tests.conftest import REPOSITORY
from tests.test_plan import ASKED, PROGRAM, RUN, SETTINGS, Compiler, answer

H100 = topologies.parse("h100")
PLUGIN = next(
    (name for name in gpus._PLUGINS if importlib.util.find_spec(name.replace("-", "_"))), None
)
needs_plugin = pytest.mark.skipif(
    PLUGIN is None, reason=f"JAX's CUDA plugin is not installed: {gpus.INSTALL}"
)


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    for variable in gpus.FRACTION_VARIABLES:
        monkeypatch.delenv(variable, raising=False)


# Names and descriptions


@pytest.mark.parametrize(
    "name, machines, each, kind",
    [
        ("h100", 1, 1, "NVIDIA H100 80GB HBM3"),
        ("h100:8", 1, 8, "NVIDIA H100 80GB HBM3"),
        ("h200:2x8", 2, 8, "NVIDIA H200"),
        ("a100:4x1", 4, 1, "NVIDIA A100-SXM4-80GB"),
        ("a100-40gb:16", 1, 16, "NVIDIA A100-SXM4-40GB"),
    ],
)
def test_topologies_are_a_card_and_a_number(name, machines, each, kind):
    found = topologies.parse(name)
    assert (found.name, found.machines, found.each) == (name, machines, each)
    assert found.devices == machines * each and found.card.device_kind == kind
    assert found.peak_flops_per_s == throughput.known_peak(kind) > 1e14


@pytest.mark.parametrize(
    "name, words",
    [
        ("h10", "no chip 'h10'; did you mean 'h100'"),
        ("h100:0", "'0' is not a number of GPUs; expected e.g. h100, h100:8 .* or h100:2x8"),
        ("h100:32", "in one machine, 16 at most"),
        ("h100:2x4x4", "'2x4x4' is not a number of GPUs"),
        ("h100:", "'' is not a number of GPUs"),
        ("h100:8x", "'8x' is not a number of GPUs"),
        ("no/such.pbtxt:8", "'no/such.pbtxt': cannot read this description .*No such file"),
    ],
)
def test_a_wrong_name_is_one_line(name, words):
    with pytest.raises(UserError, match=words) as error:
        topologies.parse(name)
    assert "\n" not in str(error.value)


def test_more_gpus_grow_to_whole_machines():
    names = [found.name for found in topologies.parse("h100:2").larger()]
    assert names[:4] == ["h100:4", "h100:8", "h100:2x8", "h100:4x8"]
    assert all(topologies.parse(name).name == name for name in names)
    assert topologies.parse("h100:2x4").larger()[0].name == "h100:2x8"


@pytest.mark.parametrize("name", gpus.CARDS)
def test_a_card_is_what_its_own_description_says(name, tmp_path):
    path = tmp_path / "card.pbtxt"
    path.write_text(gpus.CARDS[name].target_config)
    assert gpus.read(str(path)) == dataclasses.replace(gpus.CARDS[name], name=str(path))


OTHER = gpus.CARDS["a100"].target_config.replace("NVIDIA A100-SXM4-80GB", "NVIDIA Z1")
OTHER = OTHER.replace("major: 8 minor: 0", "minor: 3\n    major: 12")


def test_another_card_is_described_by_a_file(tmp_path):
    path = tmp_path / "z1.pbtxt"
    path.write_text("# peak_tflops: 209.5\n" + OTHER)
    found = topologies.parse(f"{path}:2x4")
    assert found.name == f"{path}:2x4" and found.devices == 8
    assert found.card.device_kind == "NVIDIA Z1" and found.card.capability == (12, 3)
    assert found.peak_flops_per_s == 209.5e12
    assert found.card.memory_bytes == gpus.CARDS["a100"].memory_bytes


@pytest.mark.parametrize(
    "text, words",
    [
        (OTHER, "peak of 'NVIDIA Z1' is not known here; write .* '# peak_tflops: 209.5'"),
        (OTHER.replace("CUDA", "ROCM"), 'no platform_name: "CUDA"'),
        (OTHER.replace("device_memory_size", "size"), "no device_memory_size; expected .*dump_to"),
        ("", "gpu_target_config.pbtxt that XLA writes"),
    ],
)
def test_a_file_that_lacks_something_is_one_line(text, words, tmp_path):
    path = tmp_path / "z1.pbtxt"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as error:
        topologies.parse(str(path))
    assert "\n" not in str(error.value)


# Memory


def test_programs_get_the_share_that_jax_takes(monkeypatch):
    whole = H100.card.memory_bytes
    assert H100.memory_bytes == int(0.75 * whole) and H100.whole_memory_bytes == whole
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    assert H100.memory_bytes == int(0.9 * whole)
    assert gpus.fraction_variable() == "XLA_PYTHON_CLIENT_MEM_FRACTION"
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "90")
    with pytest.raises(UserError, match="XLA_PYTHON_CLIENT_MEM_FRACTION=90: expected a share"):
        assert H100.memory_bytes


def on_h100(program, needed):
    found = answer(program, H100, needed, H100.memory_bytes)
    return dataclasses.replace(found, whole_memory_bytes=H100.card.memory_bytes)


def test_a_larger_share_of_the_memory_is_the_first_thing_to_change():
    compiler = Compiler(H100.memory_bytes)
    found = on_h100(ASKED, 0.9 * H100.card.memory_bytes)
    suggestion = suggest.search(ASKED, H100, found, compiler)
    assert suggestion.changes == {"XLA_CLIENT_MEM_FRACTION": 0.92} and not compiler.asked
    assert suggestion.program == ASKED and suggestion.compiled.fits and not found.fits
    # Beyond that share, and where there is none to choose, the program has to change.
    for found in (
        on_h100(ASKED, 0.93 * H100.card.memory_bytes),
        dataclasses.replace(on_h100(ASKED, 0.9 * H100.card.memory_bytes), whole_memory_bytes=None),
    ):
        suggestion = suggest.search(ASKED, H100, found, compiler)
        assert "REMAT_POLICY" in suggestion.changes


def test_more_gpus_are_the_last_resort():
    program = dataclasses.replace(ASKED, batch_size=8, mesh_shape={"data": 1})
    # Of what one GPU can be asked to do, the least.
    full = dataclasses.replace(program.config, remat="full")
    alone = {"data": 1, "fsdp": 1, "model": 1}
    on_one = [
        dataclasses.replace(program, config=full, mesh_shape=alone, microbatches=parts)
        for parts in (1, 2, 4, 8)
    ]
    memory = int(0.9 * min(suggest.estimate(each, "gpu") for each in on_one))
    found = answer(program, H100, 10 * memory, memory)
    suggestion = suggest.search(program, H100, found, Compiler(memory), 1000)
    assert suggestion.changes["topology"] == suggestion.topology.name == "h100:2"
    assert suggestion.compiled.devices == 2


def test_a_plan_says_whose_memory_it_is_and_what_would_fit(monkeypatch, tmp_path, capsys):
    needed = 0.85 * H100.card.memory_bytes
    monkeypatch.setattr(ahead_of_time, "compile_program", lambda p, _: on_h100(p, needed))
    fits = plan.plan(RUN, {**SETTINGS, "MESH_SHAPE": "{}"}, topology="h100", output=str(tmp_path))
    shown = capsys.readouterr().out
    assert not fits and "DOES NOT FIT, 7.91 GiB too much" in shown
    assert "59.33 GiB of memory for programs (75% of its 79.11 GiB" in shown
    assert "a peak of 989 TFLOP/s" in shown
    assert "suggestion     XLA_CLIENT_MEM_FRACTION=0.92 in the environment\n" in shown
    assert "fits when compiled: 67.24 GiB of 72.78 GiB\n" in shown
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["programs"][0]["suggestion"]["changes"] == {"XLA_CLIENT_MEM_FRACTION": 0.92}


# What must be installed


def test_a_missing_plugin_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"h100 needs JAX's CUDA plugin.*pip install.*\[plan-gpu\]"):
        plan.plan(RUN, SETTINGS, topology="h100")


def test_a_plugin_of_another_version_is_one_line_with_the_command(monkeypatch):
    versions = {"jax-cuda13-plugin": "0.9.1", "jaxlib": "0.10.2"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(metadata, "version", versions.get)
    with pytest.raises(UserError, match=r"0\.9\.1 is installed: .* jax-cuda13-plugin==0\.10\.2"):
        gpus.check_plugin(H100)
    versions["jax-cuda13-plugin"] = "0.10.2"
    gpus.check_plugin(H100)


@pytest.mark.parametrize("driver", [False, True])
def test_an_installed_plugin_is_no_noise_where_no_driver_is(driver, monkeypatch):
    logger = logging.getLogger("jax._src.xla_bridge")
    before = list(logger.filters)
    monkeypatch.setattr(nvidia, "driver_is_here", lambda: driver)
    logger.filters.clear()  # this process may have been made quiet already
    try:
        nvidia.keep_quiet_without_a_driver()
        said = "Jax plugin configuration error: Exception when calling %s.initialize()"

        def passes(*message):
            return bool(logger.filter(logger.makeRecord("", 40, "", 1, *message, None)))

        assert passes(said, ("jax_plugins.xla_cuda13",)) == driver
        assert passes(said, ("jax_plugins.other",)) and passes("something else", ())
    finally:
        logger.filters[:] = before


# The child process


def in_child(monkeypatch, get_topology_desc, compile_on, name="h100:2x8"):
    """What the child makes of PROGRAM: status and output."""
    from jax.experimental import topologies as described

    request = json.dumps({"topology": name, "program": PROGRAM.to_json()})
    output = io.StringIO()
    monkeypatch.setattr("sys.stdin", io.StringIO(request))
    monkeypatch.setattr("sys.stdout", output)
    monkeypatch.setattr(described, "get_topology_desc", get_topology_desc)
    monkeypatch.setattr(ahead_of_time, "compile_on", compile_on)
    return ahead_of_time.main(), output.getvalue()


def test_the_child_compiles_for_the_card(monkeypatch):
    asked = []

    def describe(**options):
        asked.append(options)
        return types.SimpleNamespace(devices=["GPUs"])

    def compile_on(*arguments):
        asked.append(arguments)
        return answer(PROGRAM, H100, 2**30, 2**35)

    monkeypatch.setattr(gpus, "prepare_lowering", lambda card: asked.append(card) or "")
    status, output = in_child(monkeypatch, describe, compile_on)
    card = H100.card
    assert status == 0 and asked == [
        {"platform": "cuda", "target_config": card.target_config, "topology": "1x2x8"},
        card,
        (PROGRAM, ["GPUs"], int(0.75 * card.memory_bytes), 989e12),
    ]
    found = ahead_of_time.Compiled(**json.loads(output))
    assert found.whole_memory_bytes == card.memory_bytes


def test_what_the_plugin_refuses_is_one_line(monkeypatch):
    def refuse(**_):
        raise jax.errors.JaxRuntimeError("INTERNAL: no such card\nat line 3")

    answered = in_child(monkeypatch, refuse, None)
    assert answered == (2, "JAX's CUDA plugin refuses the topology h100:2x8: no such card\n")


def test_kernels_that_this_jax_cannot_lower_are_one_line(monkeypatch):
    def fail(*_):
        raise RuntimeError("cuDNN not found.\nat line 3")

    def describe(**_):
        return types.SimpleNamespace(devices=["GPUs"])

    monkeypatch.setattr(gpus, "prepare_lowering", lambda card: "JAX has renamed it")
    answered = in_child(monkeypatch, describe, fail)
    assert answered == (2, "cuDNN not found. (JAX has renamed it)\n")
    monkeypatch.setattr(gpus, "prepare_lowering", lambda card: "")
    with pytest.raises(RuntimeError, match="cuDNN not found"):
        in_child(monkeypatch, describe, fail)


def test_the_childs_flags_come_last(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=4")
    environment = ahead_of_time._child_environment(H100)
    assert environment["JAX_PLATFORMS"] == "cpu"
    assert environment["XLA_FLAGS"].split() == [
        "--xla_gpu_autotune_level=4",
        *compilation.GPU_FLAGS,
    ]


def test_jax_is_made_to_lower_attention_for_the_card(monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    names = ("check_cudnn_version", "check_compute_capability", "is_cuda_compute_capability_equal")
    for name in names:  # to be put back
        monkeypatch.setattr(cudnn, name, getattr(cudnn, name))
    if importlib.util.find_spec("jax._src.pallas.triton.gpu_info"):
        from jax._src.pallas.triton import gpu_info

        monkeypatch.setattr(gpu_info, "get_gpu_info", gpu_info.get_gpu_info)
    assert gpus.prepare_lowering(gpus.CARDS["h100"]) == ""
    assert cudnn.check_compute_capability("9.0") and cudnn.check_cudnn_version() >= 91000
    assert cudnn.is_cuda_compute_capability_equal("9.0")
    assert gpus.prepare_lowering(gpus.CARDS["a100"]) == ""
    assert not cudnn.check_compute_capability("9.0") and cudnn.check_compute_capability("8.0")
    monkeypatch.delattr(cudnn, "check_cudnn_version")
    assert "no longer has what cuDNN's attention asks of a GPU" in gpus.prepare_lowering(H100.card)


# With the compiler


@needs_plugin
def test_a_step_is_compiled_for_two_h100s():
    program = dataclasses.replace(PROGRAM, mesh_shape={"fsdp": 2}, rules=None)
    found = ahead_of_time.compile_program(program, topologies.parse("h100:2"))
    assert (found.devices, found.hosts, found.fits) == (2, 1, True)
    assert found.device_kind == "NVIDIA H100 80GB HBM3"
    assert found.whole_memory_bytes == H100.card.memory_bytes
    parts = found.parameter_bytes + found.optimizer_bytes + found.batch_bytes
    assert 0 <= found.argument_bytes - parts < 1024  # counters
    assert found.parameter_bytes < 0.51 * 4 * found.parameters
    assert found.temporary_bytes > found.parameter_bytes  # gradients, at least


@needs_plugin
@pytest.mark.parametrize("name", ["h100", "a100:2"])
def test_attention_kernels_are_compiled_for_a_card_that_is_not_here(name):
    environment = ahead_of_time._child_environment(topologies.parse(name))
    path = os.pathsep.join(entry for entry in [REPOSITORY, *sys.path] if entry)
    done = subprocess.run(
        [sys.executable, "-c", KERNELS, name],
        capture_output=True,
        text=True,
        env=os.environ | environment | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    platform, padded, packed, cudnn = done.stdout.splitlines()[-4:]
    assert platform == "gpu"
    assert "xla.gpu.triton" in padded and "xla.gpu.triton" in packed and "fmha" in cudnn


KERNELS = """
import functools, re, sys
import jax
import jax.numpy as jnp
from t5scaling.model import attention
from t5scaling.model.network import T5Config
from t5scaling.study import gpus, topologies
from t5scaling.training import sharding

topology = topologies.parse(sys.argv[1])
devices = gpus.describe(topology)
assert gpus.prepare_lowering(topology.card) == ""
print(devices[0].platform)
layout = sharding.make_layout(devices=devices)
rows = sharding.batch_sharding(layout)


def compiled(function, *shapes):
    shapes = [jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=rows) for s in shapes]
    jitted = jax.jit(function, in_shardings=rows, out_shardings=rows)
    text = jitted.lower(*shapes).compile().as_text()
    return sorted(set(re.findall('custom_call_target="([^"]+)"', text)))


def gradients(backend, causal, packed, q, k, v):
    # Of the model's own attention, with a bias; on several devices each does its rows.
    segments = jnp.ones(q.shape[:2], jnp.int32)
    mask = attention.Mask(segments, segments, causal, packed)
    config = T5Config(1, 1, q.shape[2], q.shape[3], 1, 1, 1, dtype="bfloat16", attention=backend)

    def attend(q, k, v, bias):
        out = attention.attend(q, k, v, attention.share(config, mask, bias))
        return out.astype(jnp.float32).sum()

    bias = jnp.ones((q.shape[2], 2 * q.shape[1] - 1), jnp.float32)
    with layout.constraints():
        return jax.grad(attend, (0, 1, 2))(q, k, v, bias)


for causal, packed, length, dim in ((False, False, 512, 64), (True, True, 114, 128)):
    fused = functools.partial(gradients, "fused", causal, packed)
    print(compiled(fused, *[(4, length, 2, dim)] * 3))
cudnn = functools.partial(gradients, "cudnn", False, False)
print(compiled(cudnn, *[(4, 128, 2, 64)] * 3))
"""
