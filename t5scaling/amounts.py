"""Amounts of memory and of time as text."""


def size(count: float) -> str:
    """Bytes in the largest unit of which there is at least one: "1.50 GiB"."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """Seconds in the largest unit of which there are two or, below a second, in milliseconds."""
    for unit, factor, least in (("days", 86_400, 2), ("h", 3600, 2), ("min", 60, 2), ("s", 1, 1)):
        if seconds >= least * factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{1000 * seconds:.3g} ms" if seconds else "0 s"
