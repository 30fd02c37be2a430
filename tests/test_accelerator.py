"""benchmarks/accelerator.py, rehearsed: every part on the CPU, and what its numbers are made of."""

import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import accelerator
import accelerator_attention
import accelerator_step
import accelerator_tools as tools

from t5scaling import compilation
from t5scaling.model import network
from tests.conftest import xla_flags

REPOSITORY = tools.REPOSITORY
TOGETHER = (
    "ceiling", "doctor", "attention", "embed", "parity", "mfu", "repeat", "trace", "loop",
    "decode", "study",
)  # fmt: skip


def rehearse(parts, out):
    """Runs the parts in one process -> (records, output)."""
    command = [sys.executable, "benchmarks/accelerator.py", *parts, "--rehearse", f"--out={out}"]
    environment = {**os.environ, "XLA_FLAGS": xla_flags(devices=1)}
    done = subprocess.run(
        [*command, f"--examples={out}/none"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (out / "accelerator.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], done.stdout


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    return rehearse(TOGETHER, tmp_path_factory.mktemp("rehearsal"))


def found(rehearsal, part):
    """What a part found: its records without the one of its duration."""
    records = [record for record in rehearsal[0] if record["part"] == part]
    assert records, f"{part} has no record"
    assert "took_s" in records[-1]
    return records[:-1]


def positive(record, *names):
    for name in names:
        assert isinstance(record[name], float), name
        assert math.isfinite(record[name]) and record[name] > 0, (name, record[name])


def test_each_record_is_a_line_of_output_and_names_its_flags(rehearsal):
    records, output = rehearsal
    lines = output.splitlines()
    for record in records:
        assert record["flags"] == "project"
        shown = [f"{k}={v}" for k, v in record.items() if k not in ("part", "t", "flags")]
        assert " ".join([record["part"], *shown]) in lines
    setup = records[0]
    assert (setup["part"], setup["device"], setup["jax"]) == ("setup", "cpu", jax.__version__)
    assert set(compilation.GPU_FLAGS) <= set(setup["xla_flags"].split())


def test_ceiling(rehearsal):
    (record,) = found(rehearsal, "ceiling")
    positive(record, "gemm_tflops", "copy_tb_per_s")
    assert record["target_config"] is False  # a CPU has none


def test_doctor_and_study_are_called(rehearsal):
    (doctor,) = found(rehearsal, "doctor")
    assert doctor["passed"] is True
    (study,) = found(rehearsal, "study")
    positive(study, "wall_s")
    assert "run.py study --gin_file=gin/studies/quick.gin" in rehearsal[1]


def test_attention_finds_small_errors_in_each_backend_that_a_cpu_has(rehearsal):
    records = found(rehearsal, "attention")
    kinds = {(record["backend"], record["packed"]) for record in records}
    assert kinds == {
        ("plain", False), ("plain", True), ("cudnn", False), ("fused", False), ("fused", True),
    }  # fmt: skip
    for record in records:
        if record["backend"] == "cudnn":
            assert "NVIDIA's GPUs alone" in record["failed"]
            continue
        positive(record, "forward_ms", "ms", "forward_tflops", "tflops")
        assert record["temp_mib"] >= 0
        assert record["repeats"] is True
        for name in ("out", "dq", "dk", "dv", "dbias"):
            assert 0 <= record[name] < 0.01, name  # bfloat16 rounds to 0.004


def test_embed(rehearsal):
    records = found(rehearsal, "embed")
    assert [record["gradient"] for record in records] == ["lookup", "scatter"]
    for record in records:
        positive(record, "ms")
        assert record["error"] < 0.01
        assert record["repeats"] is True


def test_parity_measures_the_error_of_bfloat16(rehearsal):
    (record,) = found(rehearsal, "parity")
    assert (record["dtype"], record["packed"]) == ("bfloat16", True)
    assert 0 < record["loss_error"] < 0.01
    assert 0 < record["median_gradient_error"] <= record["worst_gradient_error"] < 0.1
    assert record["worst"].split("/")[0] in ("encoder", "decoder", "token_embedder")


def test_mfu_measures_a_program_and_records_the_one_that_fails(rehearsal):
    failed, together, measured = found(rehearsal, "mfu")
    assert "no such attention" in failed["failed"]
    assert failed["program"] == "base B4 attention=no such attention"
    assert together["compiled"] == 1
    assert measured["program"] == "base B4"
    positive(measured, "ms", "tflops", "mfu", "rows_per_s", "compile_s", "planned_gib", "loss")
    assert measured["mfu"] < 1
    assert measured["rows_per_s"] == pytest.approx(4 / measured["ms"] * 1e3, rel=1e-4)
    assert measured["loss"] < 1.5 * math.log(128)  # near that of a uniform guess


def test_repeat(rehearsal):
    (record,) = found(rehearsal, "repeat")
    assert record["repeats"] is True
    assert len(record["digest"]) == 64
    assert record["as_other_processes"] is None  # there were none


def test_trace(rehearsal):
    summary, *kernels = found(rehearsal, "trace")
    positive(summary, "span_ms", "busy_ms")
    assert 0 <= summary["idle"] < 1
    assert 0 < len(kernels) <= 30
    assert sum(kernel["share"] for kernel in kernels) <= 1 + 1e-4


def test_loop_says_that_it_has_no_examples(rehearsal):
    (record,) = found(rehearsal, "loop")
    assert record["skipped"].startswith("no examples of techdoc_span_en50_de50 in ")


def test_decode(rehearsal):
    records = found(rehearsal, "decode")
    assert [record["rows"] for record in records] == [4, 1, 4]
    for record in records:
        positive(record, "ms", "ms_per_position", "tokens_per_s", "compile_s")
        expected = record["rows"] * record["positions"] / record["ms"] * 1e3
        assert record["tokens_per_s"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "transformers"))), reason="no torch here"
)
def test_torch(tmp_path):
    setup, train, greedy, beams = found(rehearse(["torch"], tmp_path), "torch")
    assert setup["what"] == "setup"
    assert (train["what"], train["used_attention"]) == ("train", "eager")
    positive(train, "ms", "rows_per_s", "loss")
    for record, count in ((greedy, 1), (beams, 4)):
        assert (record["what"], record["beams"]) == ("generate", count)
        assert record["positions"] == 8
        positive(record, "ms", "tokens_per_s")


def test_a_traces_idle_share_counts_overlapping_kernels_once():
    kernels = [("gemm", 0, 4e6), ("copy", 2e6, 4e6), ("gemm", 8e6, 2e6), ("norm", 8e6, 1e6)]
    summary, rows = accelerator_step.summarise_trace(kernels, steps=2, longest=2)
    assert summary == {"span_ms": 5.0, "busy_ms": 4.0, "idle": pytest.approx(0.2), "kernels": 2}
    assert [(row["kernel"], row["ms"], row["times"]) for row in rows] == [
        ("gemm", 3.0, 1.0),
        ("copy", 2.0, 0.5),
    ]
    assert rows[0]["share"] == pytest.approx(6 / 11)
    with pytest.raises(ValueError, match="no kernels"):
        accelerator_step.summarise_trace([], steps=1)


def test_packed_rows_have_the_same_examples_on_both_sides():
    batch = tools.make_batch(8, 64, 16, 100, packed=True)
    for side, tokens in (("encoder", "encoder_input"), ("decoder", "decoder_target")):
        ids = batch[f"{side}_segment_ids"]
        assert (ids > 0).any(1).all() and ids.max() == 3
        np.testing.assert_array_equal(ids == 0, batch[f"{tokens}_tokens"] == 0)
        before_padding = np.where(ids == 0, 4, ids)
        assert (np.diff(before_padding, axis=1) >= 0).all()
    np.testing.assert_array_equal(
        batch["decoder_loss_weights"], (batch["decoder_target_tokens"] > 0)
    )
    targets, ids = batch["decoder_target_tokens"], batch["decoder_segment_ids"]
    for row, column in np.ndindex(*ids.shape):
        inside = column > 0 and ids[row, column] == ids[row, column - 1]
        expected = targets[row, column - 1] if inside else 0
        assert batch["decoder_input_tokens"][row, column] == expected


def test_every_fourth_row_that_is_not_packed_is_padded():
    batch = tools.make_batch(8, 64, 16, 100)
    lengths = (batch["encoder_input_tokens"] > 0).sum(1).tolist()
    assert lengths == [48, 64, 64, 64] * 2
    assert set(batch) == {
        "encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens",
        "decoder_loss_weights",
    }  # fmt: skip


def test_what_does_not_compile_is_returned_as_its_exception():
    def refused():
        raise NotImplementedError("no such kernel")

    fine = lambda: jax.jit(lambda x: x + 1).lower(1.0)
    (first, seconds), (second, _), (third, _) = tools.compile_together([fine, refused, fine])
    assert first(1.0) == third(1.0) == 2.0
    assert seconds > 0
    assert str(second) == "no such kernel"


def test_sizes_are_those_of_the_models_in_gin(tmp_path):
    """Parameters of T5 1.1 with the vocabulary of 32,128."""
    bench = tools.Bench(tmp_path)
    counted = {n: network.count_parameters(bench.config(n)) for n in ("small", "base", "large")}
    assert counted == {"small": 76_961_152, "base": 247_577_856, "large": 783_150_080}


def test_programs_are_valid_and_have_names_of_their_own(tmp_path):
    bench = tools.Bench(tmp_path)
    for program in accelerator_step.PROGRAMS:
        bench.config(program.size, **program.changes)
    names = [program.name for program in accelerator_step.PROGRAMS]
    assert len(set(names)) == len(names)
    few = dataclasses.replace(bench, only=(0, 2))
    assert few.chosen(names) == [names[0], names[2]]
    assert bench.chosen(names) == names


def test_cases_count_two_products_forward():
    case = accelerator_attention.Case("any", B=2, H=3, T=5, S=7, D=11)
    assert case.forward_flops == 2 * (2 * 2 * 3 * 5 * 7 * 11)


def test_tuned_flags_replace_those_that_keep_xla_from_choosing_by_time():
    """compilation.prepare adds only flags that are not named."""
    for name in ("--xla_gpu_autotune_level", "--xla_gpu_enable_triton_gemm"):
        assert any(flag.startswith(f"{name}=") for flag in compilation.GPU_FLAGS)
        assert f"{name}=" in accelerator.FLAGS["tuned"]
        assert f"{name}=0" not in accelerator.FLAGS["tuned"]


def stage(tmp_path, name, **changes):
    """Output of on_device.sh with a stand-in for Python that prints its arguments."""
    stand_in = tmp_path / "python"
    stand_in.write_text('#!/bin/sh\necho "$@"\ncase "$*" in *embed*) exit 3;; esac\n')
    stand_in.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(stand_in), "OUT": str(tmp_path / "out"), **changes}
    command = ["bash", "benchmarks/on_device.sh", name]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_on_device_goes_through_all_parts(tmp_path):
    called = []
    for name in ("one", "two", "three", "four"):
        output = stage(tmp_path, name)
        for line in output.splitlines():
            if line.startswith("benchmarks/accelerator.py"):
                called += [word for word in line.split()[1:] if not word.startswith("--")]
        assert ("exit status 3: embed" in output) == (name == "two")
    assert set(called) == set(accelerator.PARTS) - {"tune"}


def test_on_device_stops_when_its_time_is_over(tmp_path):
    output = stage(tmp_path, "one", STAGE_S="9")
    assert "benchmarks/accelerator.py" not in output
    assert "--- no time is left for: mfu" in output


def test_on_device_wants_a_stage():
    command = ["bash", "benchmarks/on_device.sh"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage:" in done.stderr
