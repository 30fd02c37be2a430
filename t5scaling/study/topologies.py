"""Devices by name: TPU slices, e.g. "v4:4x4x4", which there are and what their chips hold and do;
GPUs, e.g. "h100:8", by `gpus`."""

import dataclasses
import itertools
import math
import re
from typing import Any

from t5scaling.errors import UserError, nearest
from t5scaling.study import gpus
from t5scaling.training import throughput

LOCAL = "local"  # the devices that JAX finds here


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of TPU.

    Attributes:
        name: as in a topology's name.
        device_kind: JAX's name of its devices; a device is a whole chip.
        hbm_gib: memory that a program may use, GiB: what the compiler of libtpu 0.0.52 says is
            there when it refuses a program. The rest of the chip's memory is the system's.
        axes: dimensions of the network between chips.
        longest: of a slice's sides, chips.
        most: chips in the largest slice.
        config: name of libtpu's chip configuration, where the default one shows a chip as two
            devices.
    """

    name: str
    device_kind: str
    hbm_gib: float
    axes: int
    longest: int
    most: int
    config: str | None = None

    @property
    def peak_flops_per_s(self) -> float:
        """The peak of one chip, bfloat16."""
        return throughput.PEAK_TFLOPS[self.device_kind] * 1e12


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "TPU v4", 30.75, 3, 16, 4096, config="megacore"),
        Chip("v5e", "TPU v5 lite", 15.75, 2, 16, 256),
        Chip("v5p", "TPU v5", 95.73, 3, 24, 6144),
        Chip("v6e", "TPU v6 lite", 31.24, 2, 16, 256),
    )
}
_EXAMPLES = "v4:4x4x4, v5e:4x4, v5p:2x2x2, v6e:4x4, h100, h100:8 or local"


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips of one kind in a grid."""

    chip: Chip
    shape: tuple[int, ...]

    unit = "chips"
    whole_memory_bytes = None  # libtpu tells only what it gives to programs

    @property
    def platform(self) -> str:
        """JAX's name of the device."""
        return "tpu"

    @property
    def name(self) -> str:
        return f"{self.chip.name}:{_by(self.shape)}"

    @property
    def devices(self) -> int:
        return math.prod(self.shape)

    @property
    def peak_flops_per_s(self) -> float:
        """Of one chip, bfloat16."""
        return self.chip.peak_flops_per_s

    @property
    def memory_bytes(self) -> int:
        """The memory of one chip that a program may use."""
        return int(self.chip.hbm_gib * 2**30)

    def larger(self) -> list["Slice"]:
        """The slices of more chips, smallest first; of equal ones the most compact."""
        shapes = sorted(shapes_of(self.chip), key=lambda shape: (math.prod(shape), max(shape)))
        one_of_a_size = {math.prod(shape): shape for shape in reversed(shapes)}
        return [
            Slice(self.chip, one_of_a_size[size])
            for size in sorted(one_of_a_size)
            if size > self.devices
        ]


Topology = Slice | gpus.Gpus


def shapes_of(chip: Chip) -> list[tuple[int, ...]]:
    """The slices that Cloud TPU offers of `chip`, sides in its order: the last is the longest,
    except that a single host of a three-dimensional network is 2x2x1."""
    if chip.axes == 2:
        sides = [side for side in (1, 2, 4, 8, 16) if side <= chip.longest]
        return [(a, b) for a in sides for b in (a, 2 * a) if b in sides and (a, b) != (1, 2)]
    cubes = range(4, chip.longest + 1, 4)  # 64 chips and their multiples
    whole = itertools.combinations_with_replacement(cubes, 3)
    parts = [(2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)]
    return parts + [shape for shape in whole if math.prod(shape) <= chip.most]


def parse(name: str) -> Topology | None:
    """ "v4:4x4x4" -> Slice; "h100:8" -> Gpus; "local" -> None.

    Raises UserError for a malformed name, an unknown chip or card, or a slice that does not exist.
    """
    if name == LOCAL:
        return None
    found = gpus.parse(name)
    if found:
        return found
    match = re.fullmatch(r"([^:]+):(\d+(?:x\d+)*)", name)
    kind = match.group(1) if match else name.split(":", 1)[0]
    if kind not in CHIPS:
        choices = [*CHIPS, *gpus.CARDS, LOCAL]
        raise UserError(f"topology {name!r}: no chip {kind!r}{nearest(kind, choices)}")
    chip = CHIPS[kind]
    if not match:
        raise UserError(f"topology {name!r} is not a chip and a shape; expected e.g. {_EXAMPLES}")
    shape = tuple(int(side) for side in match.group(2).split("x"))
    if shape in shapes_of(chip):
        return Slice(chip, shape)
    raise UserError(
        f"topology {name!r}: there is no such slice; did you mean "
        f"{Slice(chip, _nearest_shape(chip, shape)).name!r}? {chip.name} has {_in_words(chip)}"
    )


def describe(tpu: Slice) -> list[Any]:
    """JAX's devices for a slice that this machine does not belong to. For the child process of
    `ahead_of_time`."""
    from jax.experimental import topologies as described

    options = {"chip_config_name": tpu.chip.config} if tpu.chip.config else {}
    return described.get_topology_desc(platform="tpu", topology_name=tpu.name, **options).devices


def _nearest_shape(chip: Chip, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The same sides in another order if there is one, else the nearest number of chips."""
    size = math.log(max(math.prod(shape), 1))
    return min(
        shapes_of(chip),
        key=lambda other: (
            sorted(other) != sorted(shape),
            abs(math.log(math.prod(other)) - size),
            max(other),
        ),
    )


def _in_words(chip: Chip) -> str:
    if chip.axes == 2:
        return ", ".join(_by(shape) for shape in shapes_of(chip))
    return (
        f"2x2x1, 2x2x2, 2x2x4, 2x4x4, and AxBxC with A <= B <= C multiples of 4, up to "
        f"{_by(max(shapes_of(chip), key=math.prod))}"
    )


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
