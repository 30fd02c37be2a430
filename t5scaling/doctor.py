"""What this machine has, what it lacks, and whether a real train step works on it.

Versions are read without importing what they are of: so this also works where a package is missing,
and it never loads TensorFlow.
"""

import dataclasses
import os
import platform
import re
import shutil
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

from t5scaling import __version__, nvidia
from t5scaling.amounts import size

REPOSITORY = Path(__file__).resolve().parents[1]
INSTALL = "python -m pip install --constraint constraints.txt"

# What is imported for what; packaging is for this file alone.
TRAIN = (
    "array_record", "etils", "flax", "gin-config", "grain", "jax", "jaxlib", "msgpack", "numpy",
    "optax", "orbax-checkpoint", "protobuf", "rich", "rouge_score", "sacrebleu", "sentencepiece",
    "tensorboardX", "tensorstore",
)  # fmt: skip
ANALYSIS = (
    "etils", "jinja2", "markupsafe", "matplotlib", "numpy", "pandas", "rich", "scipy",
    "tensorboardX",
)  # fmt: skip
MATERIALIZE = (
    "importlib_resources", "seqio", "tensorflow", "tensorflow-datasets", "tensorflow-text",
)  # fmt: skip
BUCKETS = ("fsspec", "gcsfs")


@dataclasses.dataclass(frozen=True)
class Package:
    """A package: the version that is installed (None if it is not) and the versions that are
    wanted."""

    name: str
    installed: str | None
    wanted: str = ""  # versions that pyproject.toml takes, e.g. ">=0.5.0"
    known_good: str = ""  # the version in constraints.txt

    @property
    def problem(self) -> str:
        """The problem as a sentence; empty if there is none."""
        from packaging.specifiers import SpecifierSet

        if self.installed is None:
            return "missing"
        if not SpecifierSet(self.wanted).contains(self.installed, prereleases=True):
            return f"{self.installed} is not {self.wanted}"
        return ""


@dataclasses.dataclass(frozen=True)
class Purpose:
    """What packages are for; `extra` installs them, where it is "" each is installed by name."""

    name: str
    packages: tuple[str, ...]
    extra: str = ""


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
    wanted = versions_wanted()
    listed = [name for extra in ("", "train", "data") for name in requirements()[extra]]
    _print_versions(console, look_up([*listed, "jaxlib"], wanted))
    _print_purposes(console, purposes(), wanted)
    missing = [p.name for p in look_up(TRAIN, wanted) if p.installed is None]
    if missing:
        _say(console, "red", f"self-test not run: {', '.join(missing)} missing")
        return False
    try:
        from t5scaling import compilation

        cache = compilation.prepare()
        from t5scaling import self_test

        _print_devices(console)
        _print_places(console, cache, examples_root)
        platform, memory = self_test.this_device()
        workload = self_test.default_workload(platform, memory)
        _print_attention(console, self_test.attention_choices(workload.config, platform))
        result = self_test.run(workload)
    except Exception as error:  # whatever fails here is what the user wants to know
        reason = (str(error).splitlines() or [""])[0]
        _say(console, "red", f"self-test failed: {type(error).__name__}: {reason}")
        return False
    _print_self_test(console, workload, result)
    for failure in result.failures():
        _say(console, "red", f"self-test failed: {failure}")
    if not result.failures():
        _say(console, "green", "self-test passed")
    return not result.failures()


# --- packages -------------------------------------------------------------------------------------


def requirements() -> dict[str, dict[str, str]]:
    """Extra, "" for what everybody needs -> package -> the versions it takes, "" for any.

    From pyproject.toml in a clone, elsewhere from the metadata of the installed package.
    """
    from packaging.requirements import Requirement

    lines: list[tuple[str, str]] = []
    if (project := REPOSITORY / "pyproject.toml").is_file():
        described = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        lines += [("", line) for line in described["dependencies"]]
        for extra, named in described["optional-dependencies"].items():
            lines += [(extra, line) for line in named]
    else:
        for line in metadata.requires("t5scaling") or []:
            extra = re.search(r"extra\s*==\s*['\"]([\w-]+)", line)
            lines.append((extra[1] if extra else "", line))
    found: dict[str, dict[str, str]] = {}
    for extra, line in lines:
        requirement = Requirement(line)
        if requirement.name != "t5scaling":  # an extra that is several others
            found.setdefault(extra, {})[requirement.name] = str(requirement.specifier)
    return found


def versions_wanted() -> dict[str, str]:
    """Package -> the versions that are accepted, for all extras together."""
    found: dict[str, str] = {}
    for packages in requirements().values():
        for name, versions in packages.items():
            found[name] = versions or found.get(name, "")
    return found


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


def purposes() -> tuple[Purpose, ...]:
    """The purposes that a user may have, and the packages that each needs."""
    # Either of JAX's CUDA plugins will do, and two would be in each other's way.
    plugin = "jax-cuda12-plugin" if _version("jax-cuda12-plugin") else "jax-cuda13-plugin"
    return (
        Purpose("train, eval, infer, plan", TRAIN, "train"),
        Purpose("fit, report", ANALYSIS),
        Purpose("materialize; train and study without examples", MATERIALIZE, "data"),
        Purpose("convert from and to Hugging Face", ("safetensors",), "train"),
        Purpose("materialize on Apache Beam", ("apache-beam",), "beam"),
        Purpose("directories in a bucket, gs://", BUCKETS, "gcs"),
        Purpose("TPUs; plan for their topologies", ("libtpu",), "tpu"),
        Purpose("plan for GPUs that this machine does not have", (plugin,), "plan-gpu"),
        Purpose("make test", ("apache-beam", "hypothesis", "pytest", "ruff", "tokenizers"), "test"),
        Purpose("benchmarks against Hugging Face", ("torch", "transformers"), "bench"),
    )


def install_command(purpose: Purpose, lacking: Sequence[Package]) -> str:
    """The command, in the clone's directory, that installs what a purpose lacks."""
    if purpose.extra:
        return f'{INSTALL} --editable ".[{purpose.extra}]"'
    return f"{INSTALL} " + " ".join(f'"{p.name}{p.wanted}"' for p in lacking)


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
        known = f"{size(limit)} each, {size(used)} in use" if limit else "the host's"
        rows.append((f"{len(devices)} x {kind}", name, known))
    total, free = _host_memory("SC_PHYS_PAGES"), _host_memory("SC_AVPHYS_PAGES")
    rows.append((f"host, {_cores()} cores", platform.machine(), f"{total}, {free} free"))
    _table(console, "Devices", rows, ("device", "platform", "memory"))
    if nvidia.driver_is_here() and jax.default_backend() == "cpu":
        _say(console, "yellow", _how_to_use_the_gpu(os.environ))


def _how_to_use_the_gpu(environment: Mapping[str, str]) -> str:
    here = "there is an NVIDIA GPU that JAX does not use"
    if forced := environment.get("JAX_PLATFORMS"):
        return f"{here}, as JAX_PLATFORMS is {forced!r}"
    cuda13, cuda12 = (install_command(Purpose("", (), e), ()) for e in ("gpu", "cuda12"))
    return (
        f"{here}; if its driver, which nvidia-smi shows, is 580 or newer, it takes CUDA 13:\n"
        f"  {cuda13}\nand if it is older, CUDA 12:\n  {cuda12}"
    )


def _cores() -> int:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _host_memory(pages: str) -> str:
    """The memory of so many pages, named as in sysconf."""
    if pages not in os.sysconf_names:
        return "unknown"
    return size(os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE"))


def _print_places(console: Any, cache: str, examples_root: str) -> None:
    from t5scaling.interop.t5x_environment import ENVIRONMENT as t5x

    there = "ready" if t5x.is_ready() else f"not there yet: run.py {t5x.verb} makes it"
    rows = [
        ("compilation cache", os.path.abspath(cache), _folder_size(cache)),
        ("examples", _absolute(examples_root), _folder_size(examples_root)),
        ("T5X as a trainer", str(t5x.default_folder()), there),
        ("working directory", os.getcwd(), f"{size(shutil.disk_usage('.').free)} free"),
    ]
    _table(console, "Places", rows, ("what", "path", "what is there"))


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def _folder_size(path: str) -> str:
    if "://" in path:
        return "in a bucket: not looked at"
    if not os.path.isdir(path):
        return "not there yet"
    files = [file for file in Path(path).rglob("*") if file.is_file()]
    return f"{size(sum(file.stat().st_size for file in files))} in {len(files)} files"


def _print_attention(console: Any, choices: Mapping[str, Any]) -> None:
    rows = [(kind, choice.backend, choice.reason) for kind, choice in choices.items()]
    _table(console, "Attention in the self-test", rows, ("of", "backend", "reason"))


def products_in_words(errors: tuple[float, float]) -> str:
    """What `self_test.product_errors` mean for a float32 model."""
    from t5scaling import self_test

    highest, default = errors
    if highest >= self_test.FLOAT32_ERROR:
        return f"rounded even at JAX's highest precision: relative error {highest:.0e}"
    ours = f"float32 models take them in full float32: relative error {highest:.0e}"
    if default < self_test.FLOAT32_ERROR:
        return f"{ours}; JAX's default on this device does so too: {default:.0e}"
    rounded = "TF32" if default < self_test.TF32_ERROR else "bfloat16"
    return f"{ours}; JAX's default on this device would round to {rounded}: {default:.0e}"


def _print_self_test(console: Any, workload: Any, result: Any) -> None:
    steps = len(result.losses)
    origin = "loaded" if result.from_cache else "compiled"
    lengths = f"{workload.input_len} + {workload.target_len} positions"
    peak = result.model_tflops_per_s / result.peak_share
    rows = [
        ("rows of each device", f"{workload.rows} of {lengths}, {workload.config.dtype}"),
        ("parameters", f"{result.parameters:,}"),
        ("loss of the first step", f"{result.losses[0]:.3f} nats per target token"),
        (f"loss of step {steps}", f"{result.losses[-1]:.3f} nats per target token"),
        (f"the step was {origin} in", f"{result.compile_s:.1f} s"),
        ("speed", f"{result.steps_per_s:.2f} steps/s"),
        ("", f"{result.positions_per_s:,.0f} positions/s"),
        ("", f"{result.model_tflops_per_s:.3g} model TFLOP/s"),
        ("share of the devices' peak", f"{result.peak_share:.1%} of {peak:,.3g} TFLOP/s"),
        (f"the {steps} steps repeat bit for bit", "yes" if result.repeats else "no"),
        ("float32 products", products_in_words(result.product_errors)),
    ]
    _table(console, f"Self-test: {steps} training steps", rows)
