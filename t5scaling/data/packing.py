"""Packing: several examples in one row, each a segment of its own."""

from collections import deque
from collections.abc import Sequence

import numpy as np


def pack(
    lengths: Sequence[np.ndarray], limits: Sequence[int], open_rows: int = 32
) -> list[list[int]]:
    """Rows of example numbers such that no row is longer than `limits` in any feature.

    First fit, in order, over the last `open_rows` rows that are not full; when an example fits
    into none of them the oldest is closed. Every example is in exactly one row, and a row moves
    by at most a window's worth from where its examples stood. `lengths[f][i]` are the tokens of
    feature f of example i, each at most `limits[f]`.
    """
    closed: list[list[int]] = []
    window: deque[tuple[list[int], list[int]]] = deque()  # (examples, tokens left per feature)
    for example, sizes in enumerate(zip(*(column.tolist() for column in lengths), strict=True)):
        for members, left in window:
            if all(size <= room for size, room in zip(sizes, left, strict=True)):
                members.append(example)
                left[:] = [room - size for size, room in zip(sizes, left, strict=True)]
                break
        else:
            if len(window) == open_rows:
                closed.append(window.popleft()[0])
            room = [limit - size for size, limit in zip(sizes, limits, strict=True)]
            window.append(([example], room))
    return closed + [members for members, _ in window]
