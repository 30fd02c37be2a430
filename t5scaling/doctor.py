"""What this machine has, what it lacks, and whether a real train step works on it.

Versions are read without importing what they are of: so this also works where a package is missing,
and it never loads TensorFlow.
"""

import ast
import dataclasses
import math
import os
import platform
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

from t5scaling import __version__, nvidia

REPOSITORY = Path(__file__).resolve().parents[1]
INSTALL = "python -m pip install --constraint constraints.txt"
ANALYSIS = ("matplotlib", "numpy", "pandas", "rich", "scipy")
MATERIALIZE = ("seqio", "tensorflow", "tensorflow-datasets", "tensorflow-text")

STEPS = 10
LEARNING_RATE = 0.01
# The batch's tokens are drawn from so many: their frequencies are what a few steps can learn.
TOKENS_IN_USE = 32


@dataclasses.dataclass(frozen=True)
class Package:
    """A package as it is installed (None: it is not) and as it should be."""

    name: str
    installed: str | None
    wanted: str = ""  # versions that setup.py takes, e.g. ">=0.5.0"
    known_good: str = ""  # the version in constraints.txt

    @property
    def problem(self) -> str:
        """In words; empty if there is none."""
        from packaging.specifiers import SpecifierSet

        if self.installed is None:
            return "missing"
        if not SpecifierSet(self.wanted).contains(self.installed, prereleases=True):
            return f"{self.installed} is not {self.wanted}"
        return ""


@dataclasses.dataclass(frozen=True)
class Purpose:
    """What packages are for; `extra` of setup.py installs them, its main list where that is ""."""

    name: str
    packages: tuple[str, ...]
    extra: str = ""


@dataclasses.dataclass(frozen=True)
class Workload:
    """What the self-test trains: a T5Config, rows of each device, positions of a row."""

    config: Any
    rows: int
    input_len: int
    target_len: int


@dataclasses.dataclass(frozen=True)
class SelfTest:
    """What the self-test measured. Losses are in nats per target token, one for each step.

    `peak_share` is the model's FLOP/s over the peak of `throughput.peak_flops_per_s`.
    """

    parameters: int
    losses: tuple[float, ...]
    compile_s: float
    from_cache: bool  # the compiled step was loaded, not compiled
    steps_per_s: float
    positions_per_s: float
    model_tflops_per_s: float
    peak_share: float
    repeats: bool  # a second run gave the same parameters, bit for bit

    def failures(self) -> list[str]:
        """What is wrong, in words; empty if nothing is."""
        first, last = self.losses[0], self.losses[-1]
        found = []
        if not all(math.isfinite(loss) for loss in self.losses):
            found.append(f"a loss is not finite: {', '.join(f'{x:.3f}' for x in self.losses)}")
        elif last >= first:
            found.append(f"the loss does not fall: {first:.3f} -> {last:.3f} nats per target token")
        if not self.repeats:
            found.append("the same steps taken twice give different parameters")
        return found


def doctor(examples_root: str = "runs/examples") -> bool:
    """Prints versions, what is missing for which verb and how to get it, devices, places on disk
    and the numbers of a self-test.

    `examples_root`: where the runs keep their examples. Returns whether the packages that training
    needs are there and the self-test passes; a version that is too old is flagged, no more.
    """
    bare = [name for name in ("packaging", "rich") if util.find_spec(name) is None]
    if bare:  # no versions to compare and no tables to print without them
        print(f"missing: {', '.join(bare)}; install with: {INSTALL} --editable .")
        return False
    from rich.console import Console

    console = Console()
    main, extras = requirements()
    packages = look_up([*main, "jaxlib"], main)
    _print_versions(console, packages)
    _print_purposes(console, purposes(main), {**extras, **main})
    missing = [p.name for p in packages if p.installed is None and p.name not in MATERIALIZE]
    if missing:
        _say(console, "red", f"self-test not run: {', '.join(missing)} missing")
        return False
    try:
        from t5scaling import compilation

        cache = compilation.prepare()
        nvidia.keep_quiet_without_a_driver()
        _print_devices(console)
        _print_places(console, cache, examples_root)
        result = self_test()
    except Exception as error:  # whatever fails here is what the user wants to be told
        reason = (str(error).splitlines() or [""])[0]
        _say(console, "red", f"self-test failed: {type(error).__name__}: {reason}")
        return False
    _print_self_test(console, result)
    for failure in result.failures():
        _say(console, "red", f"self-test failed: {failure}")
    if not result.failures():
        _say(console, "green", "self-test passed")
    return not result.failures()


# --- packages -------------------------------------------------------------------------------------


def requirements() -> tuple[dict[str, str], dict[str, str]]:
    """(main list, extras) of setup.py: package -> the versions it takes, "" for any.

    From setup.py in a clone, elsewhere from the metadata of the installed package.
    """
    from packaging.requirements import Requirement

    setup = REPOSITORY / "setup.py"
    if setup.is_file():
        lines = list(_setup_argument(setup, "install_requires"))
        for extra, names in _setup_argument(setup, "extras_require").items():
            lines += [f"{name}; extra == '{extra}'" for name in names]
    else:
        lines = metadata.requires("t5scaling") or []
    main, extras = {}, {}
    for requirement in map(Requirement, lines):
        optional = requirement.marker and not requirement.marker.evaluate({"extra": ""})
        (extras if optional else main)[requirement.name] = str(requirement.specifier)
    return main, extras


def _setup_argument(setup: Path, name: str) -> Any:
    """The literal that setup.py passes as `name`."""
    for node in ast.walk(ast.parse(setup.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == name:
            return ast.literal_eval(node.value)
    raise ValueError(f"{setup} passes no {name}")


def look_up(names: Iterable[str], wanted: Mapping[str, str]) -> list[Package]:
    """What is installed of `names`; `wanted` as from `requirements`."""
    known_good = _known_good()
    return [Package(n, _version(n), wanted.get(n, ""), known_good.get(n, "")) for n in names]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _known_good() -> dict[str, str]:
    constraints = REPOSITORY / "constraints.txt"
    lines = constraints.read_text(encoding="utf-8").split() if constraints.is_file() else []
    return dict(line.split("==", 1) for line in lines if "==" in line)


def purposes(main: Iterable[str]) -> tuple[Purpose, ...]:
    """What a user may want to do, and the packages for it; `main` as from `requirements`."""
    # Either of JAX's CUDA plugins will do, and two would be in each other's way.
    plugin = "jax-cuda12-plugin" if _version("jax-cuda12-plugin") else "jax-cuda13-plugin"
    return (
        Purpose("train, eval, infer, plan", tuple(n for n in main if n not in MATERIALIZE)),
        Purpose("fit, report", ANALYSIS),
        Purpose("materialize; train and study without examples", MATERIALIZE),
        Purpose("materialize on Apache Beam", ("apache-beam",), "beam"),
        Purpose("TPUs; plan for their topologies", ("libtpu",), "tpu"),
        Purpose("plan for GPUs that are not here", (plugin,), "plan-gpu"),
        Purpose("make test", ("apache-beam", "hypothesis", "pytest", "ruff"), "test"),
        Purpose("benchmarks against Hugging Face", ("torch", "transformers"), "bench"),
    )


def install_command(purpose: Purpose, lacking: Sequence[Package]) -> str:
    """The command, in the clone's directory, that gets what a purpose lacks."""
    if purpose.extra:
        return f'{INSTALL} --editable ".[{purpose.extra}]"'
    return f"{INSTALL} " + " ".join(f'"{p.name}{p.wanted}"' for p in lacking)


# --- self-test ------------------------------------------------------------------------------------


def default_workload(backend: str) -> Workload:
    """On a CPU a model for seconds; elsewhere layers wide enough to keep an accelerator busy, in
    about 6 GiB of each device."""
    from t5scaling.model import network

    sizes = {
        "vocab_size": 4096,
        "emb_dim": 128,
        "num_heads": 4,
        "head_dim": 32,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "mlp_dim": 256,
        "dropout_rate": 0.0,
    }
    if backend == "cpu":
        return Workload(network.T5Config(**sizes), rows=32, input_len=128, target_len=128)
    sizes |= {"vocab_size": 32128, "emb_dim": 1024, "num_heads": 16, "head_dim": 64}
    sizes |= {"num_encoder_layers": 4, "num_decoder_layers": 4, "mlp_dim": 2816}
    config = network.T5Config(**sizes, dtype="bfloat16", scan_layers=True)
    return Workload(config, rows=8, input_len=512, target_len=128)


def self_test(workload: Workload | None = None, steps: int = STEPS) -> SelfTest:
    """Trains twice for `steps` on one batch, data parallel on all devices; see SelfTest."""
    import jax
    import numpy as np

    from t5scaling.model import network
    from t5scaling.training import sharding, step, throughput

    workload = workload or default_workload(jax.default_backend())
    config, layout = workload.config, sharding.make_layout()
    rows = workload.rows * jax.device_count()
    batch = sharding.put_batch(_batch(workload, rows), layout)
    init = step.jit_init(config, layout)
    settings = (np.float32(LEARNING_RATE), np.uint32(0), np.bool_(True))  # a window of each step

    entries = _cache_entries()
    start = time.perf_counter()
    jitted = step.jit_train_step(config, step.Objective(), layout)
    compiled = jitted.lower(step.abstract_state(config, layout), batch, *settings).compile()
    compile_s = time.perf_counter() - start
    from_cache = bool(entries) and _cache_entries() == entries

    def run() -> tuple[float, list[float], Any]:
        state = jax.block_until_ready(init(np.uint32(0)))
        start = time.perf_counter()
        windows = []
        for _ in range(steps):
            state, (window, *_) = compiled(state, batch, *settings)
            windows.append(window)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - start
        losses = [float(w.loss) / float(w.target_tokens) for w in windows]
        return seconds, losses, jax.device_get(state.params)

    first_s, losses, params = run()
    second_s, _, params_again = run()
    same = jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), params, params_again)

    steps_per_s = steps / min(first_s, second_s)
    lengths = (workload.input_len, workload.target_len)
    flops_per_s = steps_per_s * rows * network.model_flops(config, *lengths)
    return SelfTest(
        parameters=network.count_parameters(config),
        losses=tuple(losses),
        compile_s=compile_s,
        from_cache=from_cache,
        steps_per_s=steps_per_s,
        positions_per_s=steps_per_s * rows * sum(lengths),
        model_tflops_per_s=flops_per_s / 1e12,
        peak_share=flops_per_s / throughput.peak_flops_per_s(),
        repeats=all(jax.tree.leaves(same)),
    )


def _batch(workload: Workload, rows: int) -> dict[str, Any]:
    """The arrays (rows, length) of one training batch, without padding."""
    import numpy as np

    rng = np.random.default_rng(0)

    def draw(length: int) -> Any:
        return rng.integers(1, 1 + TOKENS_IN_USE, (rows, length), np.int32)

    targets = draw(workload.target_len)
    return {
        "encoder_input_tokens": draw(workload.input_len),
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_loss_weights": np.ones(targets.shape, np.float32),
    }


def _cache_entries() -> set[str]:
    """Files of JAX's compilation cache, if one is in use."""
    import jax

    folder = jax.config.jax_compilation_cache_dir
    names = os.listdir(folder) if folder and os.path.isdir(folder) else []
    return {name for name in names if name.endswith("-cache")}


# --- printing -------------------------------------------------------------------------------------


def _say(console: Any, style: str, text: str) -> None:
    """One line, however wide the terminal, that can be copied."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _table(
    console: Any, title: str, rows: Iterable[Sequence[str]], columns: Sequence[str] = ()
) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_header=bool(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _print_versions(console: Any, packages: Sequence[Package]) -> None:
    rows = [
        (p.name, p.installed or "-", p.wanted, p.known_good, p.problem)
        for p in sorted(packages, key=lambda p: p.name.lower())
    ]
    rows.insert(0, ("t5scaling", __version__, "", "", ""))
    rows.insert(0, ("python", platform.python_version(), "", "", ""))
    _table(console, "Versions", rows, ("package", "installed", "wanted", "known good", ""))


def _print_purposes(console: Any, wishes: Sequence[Purpose], wanted: Mapping[str, str]) -> None:
    rows, commands = [], []
    for purpose in wishes:
        lacking = [p for p in look_up(purpose.packages, wanted) if p.problem]
        named = [p.name if p.installed is None else f"{p.name} {p.problem}" for p in lacking]
        rows.append((purpose.name, ", ".join(named) or "nothing"))
        if lacking:
            commands.append(f"{purpose.name}:\n  {install_command(purpose, lacking)}")
    _table(console, "What is missing", rows, ("for", "missing"))
    _say(console, "", "\n".join(commands))


def _print_devices(console: Any) -> None:
    import jax

    kinds: dict[tuple[str, str], list[Any]] = {}
    for device in jax.devices():
        kinds.setdefault((device.platform, device.device_kind), []).append(device)
    rows = []
    for (name, kind), devices in kinds.items():
        memory = devices[0].memory_stats() or {}
        limit, used = memory.get("bytes_limit"), memory.get("bytes_in_use", 0)
        known = f"{_size(limit)} each, {_size(used)} in use" if limit else "the host's"
        rows.append((f"{len(devices)} x {kind}", name, known))
    total, free = _host_memory("SC_PHYS_PAGES"), _host_memory("SC_AVPHYS_PAGES")
    rows.append((f"host, {_cores()} cores", platform.machine(), f"{total}, {free} free"))
    _table(console, "Devices", rows, ("device", "platform", "memory"))
    if nvidia.driver_is_here() and jax.default_backend() == "cpu":
        command = install_command(Purpose("", (), "gpu"), ())
        _say(console, "yellow", f"an NVIDIA GPU is here that JAX does not use:\n  {command}")


def _cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _host_memory(pages: str) -> str:
    """By the name that sysconf gives to a number of pages."""
    if pages not in os.sysconf_names:
        return "unknown"
    return _size(os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE"))


def _print_places(console: Any, cache: str, examples_root: str) -> None:
    rows = [
        ("compilation cache", os.path.abspath(cache), _folder_size(cache)),
        ("examples", _absolute(examples_root), _folder_size(examples_root)),
        ("working directory", os.getcwd(), f"{_size(shutil.disk_usage('.').free)} free"),
    ]
    _table(console, "Places", rows, ("what", "path", "size"))


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def _folder_size(path: str) -> str:
    if "://" in path:
        return "in a bucket: not looked at"
    if not os.path.isdir(path):
        return "not there yet"
    files = [file for file in Path(path).rglob("*") if file.is_file()]
    return f"{_size(sum(file.stat().st_size for file in files))} in {len(files)} files"


def _size(count: float) -> str:
    """Bytes in the unit that leaves 1 to 1023 of them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"


def _print_self_test(console: Any, result: SelfTest) -> None:
    steps = len(result.losses)
    origin = "loaded" if result.from_cache else "compiled"
    rows = [
        ("parameters", f"{result.parameters:,}"),
        ("loss of the first step", f"{result.losses[0]:.3f} nats per target token"),
        (f"loss of step {steps}", f"{result.losses[-1]:.3f} nats per target token"),
        (f"the step was {origin} in", f"{result.compile_s:.1f} s"),
        ("speed", f"{result.steps_per_s:.2f} steps/s"),
        ("", f"{result.positions_per_s:,.0f} positions/s"),
        ("", f"{result.model_tflops_per_s:.3g} model TFLOP/s"),
        ("share of the devices' peak", f"{result.peak_share:.1%}"),
        ("the same again, bit for bit", "yes" if result.repeats else "no"),
    ]
    _table(console, f"Self-test: {steps} training steps", rows)
