"""Numbers, sizes, intervals, durations and lists as text: one way to write each of them."""

import math
from collections.abc import Iterable, Sequence
from typing import Any


def number(value: float | None) -> str:
    """4 significant digits; thousands separated; powers of ten far from 1."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "overflow" if value > 0 else "-overflow"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e7:
        rounded = float(f"{value:.4g}")
        return f"{rounded:,.0f}" if abs(rounded) >= 1000 else f"{rounded:.4g}"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -100:
        return "≈ 0"
    return f"{value:.2e}"


def plain(value: Any) -> Any:
    """As JSON takes it: floats to 10 significant digits, the last ones being the machine's; not
    finite -> None."""
    if isinstance(value, float):
        return float(f"{value:.10g}") if math.isfinite(value) else None
    return value


HUGE = 1e15  # sizes from there on, such as FLOPs, are powers of ten


def size(value: float) -> str:
    """A size on the x axis: exact if it is a whole number below 10 million, else 4 digits."""
    if value >= HUGE:
        return f"{value:.4g}"
    if value < 1e7:
        return f"{value:,.0f}" if value == int(value) else f"{value:.6g}"
    unit, step = next((u, s) for u, s in (("T", 1e12), ("B", 1e9), ("M", 1e6)) if value >= s)
    return f"{value / step:.4g}{unit}"


def open_size(value: float) -> str:
    """A size, or that there is no end."""
    return size(value) if math.isfinite(value) else number(value)


def short_size(value: float) -> str:
    """78,336 -> 78k; 1,200,000 -> 1.2M; 3.54e19 -> 3.5e19."""
    if value >= HUGE:
        return f"{value:.2g}".replace("e+", "e")
    for unit, step in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * step:
            digits = f"{value / step:.2g}" if value < 10 * step else f"{value / step:.0f}"
            return digits + unit
    return size(value)


def interval(low: float, high: float) -> str:
    """ "0.1 to 0.5", each end as `number` writes it."""
    return f"{number(low)} to {number(high)}"


def with_interval(
    value: float | None,
    low: float | None,
    high: float | None,
    *,
    signed: bool = False,
    unit: str = "",
) -> str:
    """ "0.17 (-1.02 to 1.35)": all with the decimals that give the largest of them three digits, as
    more of the value would say more than the interval does. Without an interval: three digits."""
    if value is None or not math.isfinite(value):
        return number(value)
    ends = [end for end in (low, high) if end is not None and math.isfinite(end)]
    largest = max(map(abs, (value, *ends)))
    decimals = max(2 - math.floor(math.log10(largest)), 0) if largest else 0

    def written(one: float) -> str:
        if not math.isfinite(one) or decimals > 6 or largest >= 1e7:
            return number(float(f"{one:.3g}"))
        rounded = round(one, decimals) + 0.0  # and no minus zero
        return f"{rounded:{'+' if signed and rounded else ''},.{decimals if rounded else 0}f}"

    text = f"{written(value)} {unit}".rstrip()
    return text if low is None or high is None else f"{text} ({written(low)} to {written(high)})"


def hours(seconds: float) -> str:
    """A duration in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.2f} h"


def listed(names: Sequence[str]) -> str:
    """ "a, b and c"; at least one."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def values(items: Iterable) -> str:
    """Numbers and names in order, by commas."""
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in sorted(items))


def capitalised(text: str) -> str:
    """The text with a large first letter; the rest stays as it is."""
    return text[:1].upper() + text[1:]
