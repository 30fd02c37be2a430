"""NVIDIA GPUs to compile for, present or not: which cards are known, and XLA's description of one.

A topology's name is a card, alone or times their number: "h100", "h100:8" (in one machine), or
"h100:2x8" (8 in each of 2 machines). In place of the card may stand a file that describes another
one: `mycard.pbtxt`, `mycard.pbtxt:8`. XLA writes such a file where it finds the card:

    XLA_FLAGS=--xla_dump_to=dump python -c "import jax; jax.jit(lambda x: x + 1)(1.0)"
    cp "$(ls dump/*gpu_target_config.pbtxt | head -1)" mycard.pbtxt

If its `device_description_str` is not in `throughput.PEAK_TFLOPS`, the file must also hold a line

    # peak_tflops: 209.5

with the dense bfloat16 peak of the card's data sheet.
"""

import dataclasses
import importlib
import os
import re
from importlib import metadata, util
from typing import Any

from t5scaling import storage
from t5scaling.errors import UserError
from t5scaling.training import throughput

# Of a card's memory JAX takes this share for programs, unless one of the variables says otherwise.
FRACTION = 0.75
FRACTION_VARIABLES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
# The largest share to suggest: the rest holds CUDA's context, the libraries' and NCCL's buffers.
LARGEST_FRACTION = 0.92

INSTALL = 'python -m pip install --constraint constraints.txt --editable ".[plan-gpu]"'
_PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin")  # either compiles; JAX prefers the first
_LARGEST_MACHINE = 16
_MOST_MACHINES = 1024
_FILES = (".pbtxt", ".txtpb", ".textproto")


@dataclasses.dataclass(frozen=True)
class Card:
    """A kind of GPU.

    Attributes:
        name: as in a topology's name; the path of the file where one describes it.
        device_kind: JAX's name of its devices.
        memory_bytes: all that the driver reports of the card's memory.
        capability: CUDA's compute capability, (major, minor).
        peak_flops_per_s: dense, bfloat16.
        target_config: what XLA compiles for, a GpuTargetConfigProto as text.
    """

    name: str
    device_kind: str
    memory_bytes: int
    capability: tuple[int, int]
    peak_flops_per_s: float
    target_config: str


@dataclasses.dataclass(frozen=True)
class Gpus:
    """Cards of one kind: `each` in each of so many `machines`."""

    card: Card
    machines: int = 1
    each: int = 1

    unit = "GPUs"

    @property
    def platform(self) -> str:
        """JAX's name of the device."""
        return "gpu"

    @property
    def name(self) -> str:
        if self.machines > 1:
            return f"{self.card.name}:{self.machines}x{self.each}"
        return f"{self.card.name}:{self.each}" if self.each > 1 else self.card.name

    @property
    def devices(self) -> int:
        return self.machines * self.each

    @property
    def peak_flops_per_s(self) -> float:
        """The peak of one GPU, bfloat16."""
        return self.card.peak_flops_per_s

    @property
    def memory_bytes(self) -> int:
        """The memory of one GPU that a program may use."""
        return int(self.card.memory_bytes * memory_fraction())

    @property
    def whole_memory_bytes(self) -> int:
        return self.card.memory_bytes

    def larger(self) -> list["Gpus"]:
        """More cards, fewest first: one machine of up to 8, then machines of 8."""
        shapes = [(1, each) for each in (2, 4, 8)] + [(2**n, 8) for n in range(1, 7)]
        found = [Gpus(self.card, machines, each) for machines, each in shapes]
        return [gpus for gpus in found if gpus.devices > self.devices]


def _card(
    name: str,
    device_kind: str,
    *,
    capability: tuple[int, int],
    memory_bytes: int,
    memory_bandwidth: int,
    cores: int,
    fpus_per_core: int,
    clock_ghz: float,
    l2_bytes: int,
    shared_bytes_per_core: int,
    shared_bytes_per_block: int,
) -> Card:
    major, minor = capability
    text = f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {shared_bytes_per_block}
  shared_memory_per_core: {shared_bytes_per_core}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {fpus_per_core}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {memory_bandwidth}
  l2_cache_size: {l2_bytes}
  clock_rate_ghz: {clock_ghz}
  device_memory_size: {memory_bytes}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 }}
runtime_version {{ major: 13 minor: 0 }}
device_description_str: "{device_kind}"
"""
    peak = throughput.known_peak(device_kind)
    assert peak is not None
    return Card(name, device_kind, memory_bytes, capability, peak, text)


# Numbers as XLA itself gives them for these cards (xla/backends/gpu/target_config/specs).
_AMPERE: dict[str, Any] = {
    "capability": (8, 0),
    "cores": 108,
    "fpus_per_core": 64,
    "clock_ghz": 1.41,
    "l2_bytes": 41_943_040,
    "shared_bytes_per_core": 167_936,
    "shared_bytes_per_block": 166_912,
}
_HOPPER: dict[str, Any] = {
    "capability": (9, 0),
    "cores": 132,
    "fpus_per_core": 128,
    "clock_ghz": 1.98,
    "l2_bytes": 52_428_800,
    "shared_bytes_per_core": 233_472,
    "shared_bytes_per_block": 232_448,
}
CARDS = {
    card.name: card
    for card in (
        _card(
            "a100",
            "NVIDIA A100-SXM4-80GB",
            memory_bytes=85_100_068_864,
            memory_bandwidth=2_039_040_000_000,
            **_AMPERE,
        ),
        _card(
            "a100-40gb",
            "NVIDIA A100-SXM4-40GB",
            memory_bytes=42_298_834_944,
            memory_bandwidth=1_555_200_000_000,
            **_AMPERE,
        ),
        _card(
            "h100",
            "NVIDIA H100 80GB HBM3",
            memory_bytes=84_942_979_072,
            memory_bandwidth=3_352_320_000_000,
            **_HOPPER,
        ),
        _card(
            "h200",
            "NVIDIA H200",
            memory_bytes=151_397_597_184,
            memory_bandwidth=4_800_000_000_000,
            **_HOPPER,
        ),
    )
}


def parse(name: str) -> Gpus | None:
    """ "h100:2x8" -> Gpus; None if `name` begins with neither a card nor a file.

    Raises UserError if the number of cards is not a number, or the file does not describe a card.
    """
    match = re.fullmatch(r"(.+?)(?::([^:/]*))?", name)
    kind, number = match.groups() if match else (name, None)
    if kind in CARDS:
        card = CARDS[kind]
    elif kind.endswith(_FILES):
        card = read(kind)
    else:
        return None
    if number is None:
        return Gpus(card)
    sizes = re.fullmatch(r"(?:(\d{1,5})x)?(\d{1,5})", number)
    machines, each = (int(size or 1) for size in sizes.groups()) if sizes else (0, 0)
    if 1 <= machines <= _MOST_MACHINES and 1 <= each <= _LARGEST_MACHINE:
        return Gpus(card, machines, each)
    raise UserError(
        f"topology {name!r}: {number!r} is not a number of GPUs; expected e.g. {kind}, {kind}:8 "
        f"(in one machine, {_LARGEST_MACHINE} at most) or {kind}:2x8 (8 in each of 2 machines)"
    )


def read(path: str) -> Card:
    """The card that a file describes, a GpuTargetConfigProto as text.

    Raises UserError if there is none, or if it lacks what a plan needs.
    """
    try:
        text = storage.content_of(path).decode(errors="replace")
    except OSError as error:
        raise UserError(
            f"topology {path!r}: cannot read this description of a GPU: {error.strerror}"
        ) from None

    def value(pattern: str, what: str) -> str:
        found = re.search(pattern, text)
        if not found:
            raise UserError(
                f"topology {path!r}: the file has no {what}; expected the "
                "gpu_target_config.pbtxt that XLA writes on a CUDA device with "
                "XLA_FLAGS=--xla_dump_to=DIR"
            )
        return found.group(1) or "0"

    value(r'\bplatform_name:\s*"(CUDA)"', 'platform_name: "CUDA"')
    kind = value(r'\bdevice_description_str:\s*"([^"]+)"', "device_description_str")
    memory = value(r"\bdevice_memory_size:\s*(\d+)", "device_memory_size")
    major = value(r"\bcuda_compute_capability\s*\{[^}]*?major:\s*(\d+)", "cuda_compute_capability")
    minor = value(r"\bcuda_compute_capability\s*\{[^}]*?(?:minor:\s*(\d+)|\})", "minor version")
    given = re.search(r"^\s*#\s*peak_tflops:\s*([\d.]+)\s*$", text, re.MULTILINE)
    peak = float(given.group(1)) * 1e12 if given else throughput.known_peak(kind)
    if not peak:
        raise UserError(
            f"topology {path!r}: the peak of {kind!r} is not known here; write the dense bfloat16 "
            "peak of its data sheet into the file, as a line '# peak_tflops: 209.5'"
        )
    return Card(path, kind, int(memory), (int(major), int(minor)), peak, text)


def memory_fraction() -> float:
    """The share of a card's memory that JAX takes for programs.

    Raises UserError if the variable that sets it holds no number.
    """
    text = os.environ.get(fraction_variable(), "")
    try:
        fraction = float(text or FRACTION)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction <= 1:
        raise UserError(f"{fraction_variable()}={text}: expected a share of the memory in (0, 1]")
    return fraction


def fraction_variable() -> str:
    """The environment variable that sets it: the one in use, as JAX refuses to see both."""
    return next(
        (name for name in FRACTION_VARIABLES if os.environ.get(name)), FRACTION_VARIABLES[0]
    )


def check_plugin(topology: Gpus) -> None:
    """Raises UserError unless JAX's CUDA plugin is here, in the version that this JAX takes."""
    for plugin in _PLUGINS:
        if util.find_spec(plugin.replace("-", "_")) is None:
            continue
        # A plugin that is there without metadata is left to JAX to judge.
        version, jaxlib = _version(plugin), _version("jaxlib")
        if version and jaxlib and version != jaxlib:
            raise UserError(
                f"planning for {topology.name} needs {plugin} in the version of jaxlib, {jaxlib}; "
                f"{version} is installed: python -m pip install {plugin}=={jaxlib}"
            )
        return
    raise UserError(
        f"planning for {topology.name} needs JAX's CUDA plugin, which holds the compiler for GPUs "
        f"and is not installed (400 MB; neither a GPU nor NVIDIA's libraries are needed): {INSTALL}"
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe(topology: Gpus) -> list[Any]:
    """JAX's devices for cards that this machine does not have. For the child process of
    `ahead_of_time`."""
    from jax.experimental import topologies as described

    card = topology.card
    return described.get_topology_desc(
        platform="cuda",
        target_config=card.target_config,
        topology=f"1x{topology.machines}x{topology.each}",
    ).devices


def prepare_lowering(card: Card) -> str:
    """Makes JAX lower fused attention for `card`, though no GPU is here.

    Two kinds of kernel ask the devices at hand what they are, not those that are compiled for:
    Pallas's Triton kernels (JAX 0.10 takes compute capability 9.0 where there is none; 0.11 raises)
    and cuDNN's attention (raises where cuDNN is not). What they ask is private to JAX, and is
    replaced here: so this is only for the child process of `ahead_of_time`, which runs nothing.

    Returns what could not be replaced, for the error if a program then does not lower; "" if all
    could.
    """
    missing = []
    capability = ".".join(map(str, card.capability))
    try:
        gpu_info = importlib.import_module("jax._src.pallas.triton.gpu_info")
    except ImportError:  # JAX 0.10 asks for nothing that must be replaced
        pass
    else:
        try:
            info = gpu_info.GpuInfo(
                gpu_version=gpu_info.gpu_version_from_device_kind(card.device_kind),
                arch_name=capability,
                compute_capability=10 * card.capability[0] + card.capability[1],
            )
            _replace(gpu_info, "get_gpu_info", lambda: info)
        except (AttributeError, TypeError):
            missing.append("what Pallas's Triton kernels ask")
    try:
        from jax._src.cudnn import fused_attention_stablehlo as cudnn

        _replace(cudnn, "check_cudnn_version", lambda: 91200)
        _replace(
            cudnn, "check_compute_capability", lambda least: _numbers(least) <= card.capability
        )
        _replace(
            cudnn,
            "is_cuda_compute_capability_equal",
            lambda other: _numbers(other) == card.capability,
        )
    except (ImportError, AttributeError):
        missing.append("what cuDNN's attention asks")
    if not missing:
        return ""
    return (
        f"JAX {metadata.version('jax')} no longer has {' and '.join(missing)} of a GPU where "
        "t5scaling replaces it: programs with such kernels can be planned only on the GPU itself, "
        "with --topology=local, or with a JAX between 0.10.2 and 0.11.2"
    )


def _replace(module: Any, name: str, function: Any) -> None:
    getattr(module, name)  # an AttributeError if JAX has renamed it
    setattr(module, name, function)


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(map(int, capability.split(".")))
