"""Promises of a plan: right numbers, one clear line for a mistake, and suggestions that fit."""

import dataclasses
import importlib.util
import io
import json
import math
import subprocess
import types

import jax
import pytest

from t5scaling import config
from t5scaling.errors import UserError
from t5scaling.model import network
from t5scaling.study import ahead_of_time, expand, plan, runner, study, suggest, topologies
from t5scaling.training import sharding, step
from tests import mini
from tests.conftest import REPOSITORY

RUN = ["tests/mini/model.gin", "gin/runs/pretrain.gin"]
SETTINGS = {
    "TRAIN_STEPS": "30",
    "BATCH_SIZE": "8",
    "TASK_FEATURE_LENGTHS": "{'inputs': 64, 'targets': 24}",
    "CHECKPOINT_STEPS": "(10, 20)",
}


@pytest.fixture(autouse=True)
def _in_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


# Topologies


@pytest.mark.parametrize(
    "name, chips, kind",
    [
        ("v4:4x4x4", 64, "TPU v4"),
        ("v4:2x2x1", 4, "TPU v4"),
        ("v5e:1x1", 1, "TPU v5 lite"),
        ("v5e:8x16", 128, "TPU v5 lite"),
        ("v5p:2x2x2", 8, "TPU v5"),
        ("v5p:16x16x24", 6144, "TPU v5"),
        ("v6e:4x4", 16, "TPU v6 lite"),
    ],
)
def test_topologies_are_chips_and_a_shape(name, chips, kind):
    tpu = topologies.parse(name)
    assert (tpu.name, tpu.devices, tpu.chip.device_kind) == (name, chips, kind)
    assert tpu.peak_flops_per_s > 1e14


def test_local_is_no_slice():
    assert topologies.parse("local") is None


@pytest.mark.parametrize(
    "name, words",
    [
        ("v7:2x2", "no chip 'v7'.*'v4'"),
        ("loca", "did you mean 'local'"),
        (
            "4x4",
            "no chip '4x4'; expected one of: a100, a100-40gb, h100, h200, local, v4, v5e, v5p, v6e",
        ),
        ("v4", "not a chip and a shape; expected e.g. v4:4x4x4.* h100"),
        ("v4:4xx4", "not a chip and a shape"),
        ("v5e:4x2", "did you mean 'v5e:2x4'"),
        ("v5e:3x5", "did you mean 'v5e:4x4'.* 8x16, 16x16"),
        ("v5e:32x32", "did you mean 'v5e:16x16'"),
        ("v4:4x4", "did you mean 'v4:2x2x4'"),
        ("v4:4x4x5", "did you mean 'v4:4x4x4'.*multiples of 4, up to 16x16x16"),
        ("v4:16x16x24", "no such slice"),
        ("v5e:0x4", "did you mean 'v5e:1x1'"),
    ],
)
def test_a_wrong_topology_is_one_line_with_the_nearest_choice(name, words):
    with pytest.raises(UserError, match=words) as error:
        topologies.parse(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", topologies.CHIPS)
def test_larger_slices_grow_to_the_largest(kind):
    chip = topologies.CHIPS[kind]
    smallest = topologies.Slice(chip, topologies.shapes_of(chip)[0])
    sizes = [tpu.devices for tpu in smallest.larger()]
    assert sizes == sorted(set(sizes)) and sizes[0] > smallest.devices and sizes[-1] == chip.most
    assert all(topologies.parse(tpu.name) == tpu for tpu in smallest.larger())


# A plan for the devices here: numbers against hand counts


def test_a_local_plan_is_right(tmp_path, capsys):
    overrides = {**SETTINGS, "MESH_SHAPE": "{'data': -1, 'fsdp': 2}"}
    fits = plan.plan(RUN, overrides, topology="local", utilization=0.5, output=str(tmp_path))
    result = json.loads((tmp_path / "plan.json").read_text())
    (entry,) = result["programs"]
    compiled = entry["compiled"]
    assert fits and entry["fits"] and result["fits"]
    assert compiled["mesh"] == {"data": 1, "fsdp": 2, "model": 1}

    # Vocabulary 8192, width 32, 2 heads of 16, MLP of two branches of 64; one layer in each stack.
    attention, mlp, relative = 4 * 32 * 32, 3 * 32 * 64, 2 * 32
    encoder = attention + mlp + 2 * 32 + 32 + relative
    decoder = 2 * attention + mlp + 3 * 32 + 32 + relative
    parameters = 2 * 8192 * 32 + encoder + decoder
    assert compiled["parameters"] == parameters
    # Width is split in two; the relative position biases have no width. No parameter's two largest
    # axes hold 128, so that Adafactor keeps a number for each.
    part = 4 * ((parameters - 2 * relative) // 2 + 2 * relative)
    assert compiled["parameter_bytes"] == compiled["optimizer_bytes"] == part
    # 4 of the 8 rows; 64 inputs and three arrays of 24 targets; 4 bytes each.
    assert compiled["batch_bytes"] == 4 * (64 + 3 * 24) * 4
    # Counters: step, 5 sums, 2 limbs, 1 step; learning rate, seed (4 bytes each), 1 bool.
    counters = 4 * (1 + 5 + 2 + 1)
    known = 2 * part + compiled["batch_bytes"]
    assert known < compiled["argument_bytes"] <= known + counters + 9
    assert compiled["checkpoint_bytes"] == 2 * 4 * parameters + counters
    assert entry["checkpoints"] == 3
    assert result["checkpoint_bytes"] == 3 * compiled["checkpoint_bytes"]
    assert compiled["temporary_bytes"] > 4 * parameters // 2  # the gradient, at least

    products = (attention + mlp) * 64 + (attention + attention // 2 + mlp) * 24
    products += attention // 2 * 64 + 8192 * 32 * 24
    scores = 64 * 64 + 24 * 24 + 24 * 64
    flops = 8 * (6 * products + 12 * 32 * scores)
    assert entry["flops_per_step"] == flops and entry["flops"] == 30 * flops
    assert entry["positions_per_step"] == 8 * 88
    seconds = flops / (0.5 * compiled["peak_flops_per_s"] * 2)
    assert entry["step_seconds"] == pytest.approx(seconds)
    assert result["device_hours"] == pytest.approx(30 * seconds * 2 / 3600)

    shown = capsys.readouterr().out
    assert (tmp_path / "plan.txt").read_text() == shown == plan.render(result)
    assert "ASSUMED, not measured: 50%" in shown and f"{parameters:,} parameters" in shown
    assert "data 1 x fsdp 2 x model 1" in shown and "fits" in shown


def test_packed_rows_bring_segment_ids():
    (group,) = plan.groups_of(["tests/mini/model.gin", "gin/runs/finetune.gin"], {})
    batch = group.program.abstract_batch(sharding.make_layout())
    assert batch["encoder_segment_ids"].shape == batch["decoder_segment_ids"].shape == (32, 128)
    (group,) = plan.groups_of(RUN, SETTINGS)
    assert set(group.program.abstract_batch(sharding.make_layout())) == {
        "encoder_input_tokens",
        "decoder_input_tokens",
        "decoder_target_tokens",
        "decoder_loss_weights",
    }


@pytest.mark.parametrize(
    "overrides, options, words",
    [
        ({"BATCH_SIZE": "7"}, {}, "BATCH_SIZE=7 cannot be split over 2 devices"),
        ({"MESH_SHAPE": "{'data': 3}"}, {}, "does not make 2 devices"),
        ({"TRAIN_STEPS": "%gin.REQUIRED"}, {}, "needs TRAIN_STEPS"),
        ({}, {"utilization": 40.0}, "--utilization=40.0: expected a share"),
        ({}, {"output": "README.md"}, "README.md is a file"),
        ({}, {"topology": "v5e:4x5"}, "no such slice"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(overrides, options, words, capsys):
    with pytest.raises(UserError, match=words):
        plan.plan(RUN, {**SETTINGS, **overrides}, **{"topology": "local", **options})
    assert not capsys.readouterr().out


def test_a_missing_libtpu_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"v5e:4x4 needs libtpu.*pip install libtpu.*\[tpu\]"):
        plan.plan(RUN, SETTINGS, topology="v5e:4x4")


# The child process


PROGRAM = ahead_of_time.Program(
    mini.CONFIG,
    step.Objective(),
    batch_size=8,
    input_length=64,
    target_length=24,
    mesh_shape={"data": 1, "fsdp": 2},
    rules=sharding.Rules(vocab=None),
)
SLICE = topologies.parse("v4:2x2x1")


def test_a_program_survives_json():
    assert ahead_of_time.Program.from_json(json.loads(json.dumps(PROGRAM.to_json()))) == PROGRAM


def in_child(monkeypatch, get_topology_desc):
    """What the child makes of PROGRAM: status and output."""
    from jax.experimental import topologies as described

    request = json.dumps({"topology": SLICE.name, "program": PROGRAM.to_json()})
    output = io.StringIO()
    monkeypatch.setattr("sys.stdin", io.StringIO(request))
    monkeypatch.setattr("sys.stdout", output)
    monkeypatch.setattr(described, "get_topology_desc", get_topology_desc)
    return ahead_of_time.main(), output.getvalue()


def test_the_child_compiles_for_what_is_described(monkeypatch):
    asked = []

    def describe(**options):
        asked.append(options)
        return types.SimpleNamespace(devices=["chips"])

    def compile_on(*arguments):
        asked.append(arguments)
        return answer(PROGRAM, SLICE, 2**30, 2**35)

    monkeypatch.setattr(ahead_of_time, "compile_on", compile_on)
    status, output = in_child(monkeypatch, describe)
    found = ahead_of_time.Compiled(**json.loads(output))
    assert status == 0 and found == answer(PROGRAM, SLICE, 2**30, 2**35)
    assert asked == [
        # Without the last, libtpu would describe each chip of a v4 as two devices.
        {"platform": "tpu", "topology_name": "v4:2x2x1", "chip_config_name": "megacore"},
        (PROGRAM, ["chips"], 30.75 * 2**30, 275e12),
    ]


def test_what_libtpu_refuses_is_one_line(monkeypatch):
    def refuse(**_):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: no such layout\nat line 3")

    status, output = in_child(monkeypatch, refuse)
    assert (status, output) == (2, "libtpu refuses the topology v4:2x2x1: no such layout\n")


@pytest.mark.parametrize(
    "status, output, error, words",
    [
        (2, "BATCH_SIZE=8 cannot be split\n", UserError, "BATCH_SIZE=8 cannot be split"),
        (-9, "", UserError, "killed while compiling for v4:2x2x1"),
        (1, "", RuntimeError, "ended with status 1"),
    ],
)
def test_a_child_that_fails_says_why(status, output, error, words, monkeypatch):
    def run(command, *, env, **_):
        assert env["JAX_PLATFORMS"] == "cpu" and env["TPU_SKIP_MDS_QUERY"] == "1"
        return subprocess.CompletedProcess(command, status, stdout=output)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(error, match=words):
        ahead_of_time.compile_program(PROGRAM, SLICE)


# Studies


def test_a_study_is_grouped_as_it_would_run(mini_root, tmp_path):
    places = {
        "STUDY_DIR": str(tmp_path),
        "EXAMPLES_ROOT": mini_root,
        "LEARNING_RATES": "(0.01, 0.02, 0.03)",
    }
    pretrain, finetune = plan.groups_of(["tests/mini/study.gin"], places)
    config.load(["tests/mini/study.gin"], places)
    runs = expand.expand(**config.bindings_of(runner.run_study))
    for group in (pretrain, finetune):
        like = [run for run in runs if run.record["kind"] == group.kind]
        assert group.runs == len(like) > 0
        assert group.steps == sum(run.record["steps"] for run in like)
        positions = group.program.input_length + group.program.target_length
        assert group.steps * group.program.batch_size * positions == sum(
            run.positions for run in like
        )
        assert group.steps_estimated is None
    assert pretrain.checkpoints == len(runs[0].record["checkpoints"]) == 3
    assert finetune.checkpoints == finetune.runs == 3 * 4
    assert (pretrain.program.packed, finetune.program.packed) == (False, True)


def test_a_study_without_examples_is_estimated_from_its_tokens(tmp_path):
    grid = study.Study(
        name="large",
        model_gin="tests/mini/model.gin",
        pretrain_gin="gin/runs/pretrain.gin",
        finetune_gin="gin/runs/finetune.gin",
        pretrain_data={"one": {"en": 1.0}, "other": {"de": 1.0}},
        pretrain_tokens=(0, 10**6, 10**9),
        tasks={"a": ("en", "de"), "b": ("de", "en")},
        finetune_pools=(10**5, None),
        learning_rates=(0.1, 0.2, 0.3),
        seeds=(0, 1),
        pretrain_settings={
            "BATCH_SIZE": 256,
            "TASK_FEATURE_LENGTHS": {"inputs": 512, "targets": 114},
        },
    )
    pretrain, finetune = plan._merged(plan.study_groups(grid, str(tmp_path)))
    # 567 text tokens a row: 0.9 of them, and the end, are 512 positions.
    steps = math.ceil(10**9 / (256 * 567))
    assert (pretrain.runs, pretrain.steps, pretrain.checkpoints) == (2, 2 * steps, 4)
    assert "567 text tokens a row" in pretrain.steps_estimated
    starts = 2 * 2 + 1  # two mixtures, two D_p, one baseline
    assert finetune.runs == starts * 2 * 3 * 2 * 2 and finetune.steps == 300 * finetune.runs


# What fits


LARGE = network.T5Config(
    vocab_size=32128,
    emb_dim=1024,
    num_heads=16,
    head_dim=64,
    num_encoder_layers=24,
    num_decoder_layers=24,
    mlp_dim=4096,
    dtype="bfloat16",
    scan_layers=True,
)
ASKED = ahead_of_time.Program(
    LARGE,
    step.Objective(),
    batch_size=128,
    input_length=512,
    target_length=114,
    mesh_shape={"data": -1},
)
V5E = topologies.parse("v5e:4x4")


def answer(program, topology, needed, memory):
    """What a compiler would say that finds `program` to need so many bytes."""
    mesh = {"data": topology.devices, "fsdp": 1, "model": 1} | {
        axis: size for axis, size in program.mesh_shape.items() if size != -1
    }
    return ahead_of_time.Compiled(
        device_kind="device",
        mesh=mesh,
        hosts=4,
        parameters=1,
        checkpoint_bytes=1,
        parameter_bytes=1,
        optimizer_bytes=1,
        batch_bytes=1,
        memory_bytes=memory,
        peak_flops_per_s=topology.peak_flops_per_s,
        seconds=1.0,
        temporary_bytes=int(needed),
    )


class Compiler:
    """Finds a program to need `factor` times what was estimated for it, and notes what it was
    asked."""

    def __init__(self, memory, factor=1.0):
        self.memory, self.factor = memory, factor
        self.asked = []

    def __call__(self, program, tpu):
        self.asked.append((program, tpu))
        estimate = suggest.estimate(program, tpu.platform)
        return answer(program, tpu, self.factor * estimate, self.memory)


def search(memory, factor=1.0, program=ASKED, **options):
    compiler = Compiler(memory, factor)
    found = answer(program, V5E, 10 * memory, memory)
    return suggest.search(program, V5E, found, compiler, **options), compiler


def estimated(remat, fsdp=1, model=1, microbatches=1):
    mesh = {"data": 16 // (fsdp * model), "fsdp": fsdp, "model": model}
    settings = dataclasses.replace(LARGE, remat=remat)
    return suggest.estimate(
        dataclasses.replace(ASKED, config=settings, mesh_shape=mesh, microbatches=microbatches),
        "tpu",
    )


def test_the_estimate_falls_with_every_change():
    assert estimated("none") > 1.2 * estimated("minimal") > 1.2 * estimated("full")
    assert estimated("full") > estimated("full", fsdp=2) > estimated("full", fsdp=4)
    assert estimated("none") > estimated("none", microbatches=4)
    assert estimated("none") > estimated("none", model=2)


def test_remat_is_the_first_thing_to_change():
    suggestion, compiler = search(memory=int(1.01 * estimated("minimal")))
    assert suggestion.changes == {"REMAT_POLICY": "minimal"} and len(compiler.asked) == 1
    assert suggestion.compiled.fits and suggestion.topology == V5E
    suggestion, _ = search(memory=int(1.01 * estimated("full")))
    assert suggestion.changes == {"REMAT_POLICY": "full"}


def test_then_parameters_are_split_by_as_little_as_will_do():
    memory = int(1.01 * estimated("full", fsdp=4))
    suggestion, compiler = search(memory=memory, compilations=100)
    assert suggestion.changes == {
        "REMAT_POLICY": "full",
        "MESH_SHAPE": {"data": 4, "fsdp": 4, "model": 1},
    }
    assert suggestion.program.mesh_shape == suggestion.changes["MESH_SHAPE"]
    # The compiler was asked about smaller changes first, which did not fit.
    sizes = [program.mesh_shape["fsdp"] for program, _ in compiler.asked]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] == 4


def test_hopeless_candidates_are_not_compiled():
    memory = int(0.3 * estimated("full", fsdp=16))
    _, compiler = search(memory=memory, compilations=1000)
    assert compiler.asked
    assert all(suggest.estimate(program, "tpu") < 3 * memory for program, _ in compiler.asked)


def test_after_enough_compilations_the_suggestion_is_only_an_estimate():
    memory = int(1.01 * estimated("full", fsdp=2))
    suggestion, compiler = search(memory=memory, factor=1.5, compilations=2)
    assert len(compiler.asked) == 2
    assert suggestion.compiled is None and suggestion.estimated_bytes <= memory


def test_a_larger_slice_is_the_last_resort():
    # One head cannot be split, and a device of 16 does no less than one row at a time.
    program = dataclasses.replace(
        ASKED, config=dataclasses.replace(LARGE, num_heads=1), batch_size=64
    )
    least = dataclasses.replace(
        program,
        config=dataclasses.replace(program.config, remat="full"),
        mesh_shape={"data": 1, "fsdp": 16, "model": 1},
        microbatches=4,
    )
    memory = int(0.95 * suggest.estimate(least, "tpu"))
    suggestion, _ = search(memory, program=program, compilations=1000)
    assert suggestion.changes["topology"] == suggestion.topology.name == "v5e:4x8"
    assert suggestion.compiled.fits and suggestion.compiled.devices == 32
    # 16 rows cannot be split over more than 16 devices.
    program = dataclasses.replace(program, batch_size=16)
    least = dataclasses.replace(least, batch_size=16, microbatches=1)
    memory = int(0.95 * suggest.estimate(least, "tpu"))
    assert search(memory, program=program, compilations=1000)[0] is None


def test_a_mesh_that_the_users_rules_forbid_is_passed_over():
    memory = int(1.01 * estimated("full", fsdp=2))
    compiler = Compiler(memory)

    def picky(program, tpu):
        if program.mesh_shape["fsdp"] == 2:
            raise UserError("no")
        return compiler(program, tpu)

    found = answer(ASKED, V5E, 10 * memory, memory)
    suggestion = suggest.search(ASKED, V5E, found, picky, 100)
    assert suggestion.compiled.fits and suggestion.program.mesh_shape["fsdp"] != 2


def test_a_plan_that_does_not_fit_says_what_would(monkeypatch, tmp_path, capsys):
    def compile_program(program, tpu):
        if program.config.remat == "full":
            return answer(program, tpu, 10 * 2**30, 16 * 2**30)
        refused = "CompileTimeHbmOom: 35.88G exceeds 15.75G"
        return dataclasses.replace(answer(program, tpu, 0, 16 * 2**30), refused=refused)

    monkeypatch.setattr(ahead_of_time, "compile_program", compile_program)
    fits = plan.plan(RUN, SETTINGS, topology="v5e:2x2", output=str(tmp_path))
    shown = capsys.readouterr().out
    (entry,) = json.loads((tmp_path / "plan.json").read_text())["programs"]
    assert not fits and not entry["fits"]
    assert "DOES NOT FIT: CompileTimeHbmOom: 35.88G exceeds 15.75G" in shown
    assert "--gin.REMAT_POLICY=full" in shown and "fits when compiled: 10.00 GiB" in shown
    assert entry["suggestion"]["changes"] == {"REMAT_POLICY": "full"}
