"""What all tests share: JAX as `run.py` prepares it, examples, and the order of the files."""

import gc
import os
import sys

import pytest


def xla_flags(devices: int) -> str:
    """For the environment of a process: so many simulated devices, and small programs compiled in
    half of LLVM's time."""
    return (
        f"--xla_force_host_platform_device_count={devices} --xla_cpu_use_fusion_emitters=false "
        "--xla_cpu_parallel_codegen_split_count=1"
    )


# Two simulated devices, so that every test of training is also one of data parallelism. And LLVM
# optimises next to nothing, here and in the processes that tests start: the programs are small and
# run for moments, and most of the tests' time would go into compiling them (three to four times as
# much). Set before JAX starts. What has to hold of programs as a user's are compiled asks for it:
# AS_A_USERS_ARE.
os.environ.setdefault("XLA_FLAGS", xla_flags(devices=2))
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if REPOSITORY not in sys.path:
    sys.path.insert(0, REPOSITORY)

# For `jit(...).lower(...).compile(compiler_options=...)`: what XLA does where nothing is set.
AS_A_USERS_ARE = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
    "xla_cpu_parallel_codegen_split_count": 32,
}

# A file's tests run in one process (--dist=loadfile). The long ones go first, so that no process is
# left with one of them at the end; and of the first three only one waits for `mini_root`.
LONG = (
    "test_study", "test_types", "test_decoding", "test_steps_per_call", "test_readme", "test_slurm",
    "test_gcs", "test_sharding", "test_accelerator", "test_distributed", "test_attention",
    "test_model", "test_evaluation", "test_infer", "test_data", "test_intervals",
    "test_same_model", "test_parity", "test_training", "test_interop", "test_fit", "test_report",
    "test_run", "test_beam", "test_nmt_benchmark", "test_archive", "test_attention_tpu",
)  # fmt: skip


def pytest_configure():
    # Tests make few cycles and many objects that stay: those of JAX and TensorFlow, which the
    # collector would go through again and again.
    gc.set_threshold(100_000, 20, 100)
    from t5scaling import compilation

    compilation.prepare()  # with its cache on disk: what one process compiled, the next finds


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


@pytest.fixture
def materialised_here(monkeypatch):
    """SeqIO makes the examples that are missing in this process, not in a child, which would import
    TensorFlow for each.

    For tests that need examples and do not look at how they are made.
    """
    from rich.console import Console

    from t5scaling.data import examples, materialize, reading

    reading.import_seqio()  # what it prints belongs to no test

    def make(specs, root, beam):
        return [
            materialize.materialize(spec, root, Console(quiet=True), beam=beam) for spec in specs
        ]

    monkeypatch.setattr(examples, "_materialize_in_child", make)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """The same one in all test processes."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def mini_root(shared_folder):
    """Root of the materialised examples of tests/mini/study.gin, shared by all test processes; the
    first that asks for them starts the child that makes them."""
    from t5scaling import storage
    from t5scaling.data.examples import find_all_examples
    from tests import mini

    root = str(shared_folder / "examples")
    with storage.locked(shared_folder / "examples.lock", waiting=lambda: None):
        find_all_examples([mini.SPAN, mini.PAIRS, mini.VALIDATION, mini.TEST], root)
    return root


@pytest.fixture(scope="session")
def mini_study(shared_folder, mini_root):
    """The folder of the finished study of tests/mini/study.gin with its report, which nothing
    disturbed; made by the first test process that asks for it, read by all."""
    import run
    from t5scaling import storage
    from tests import mini

    folder = shared_folder / "mini_study"
    with storage.locked(shared_folder / "mini_study.lock", waiting=lambda: None):
        # A process whose tests failed here may have left half a study: it is gone on with.
        if not (folder / "report.html").exists():
            assert run.main(mini.study(folder, mini_root)) == 0
    return folder


@pytest.fixture(scope="session")
def mini_run(shared_folder, mini_root):
    """A run of six steps with the checkpoints 3 and 6, shared by all test processes: to be read.

    A test that writes into a run does so into a copy.
    """
    from t5scaling import storage
    from tests import mini

    folder = shared_folder / "run"
    with storage.locked(shared_folder / "run.lock", waiting=lambda: None):
        if not (folder / "DONE").exists():
            mini.train(folder, mini_root, train_steps=6, checkpoint_steps=(3,))
    return folder
