"""Finetuning pools (D_f): the first examples of a task, as many as a budget says.

Pools of one task are prefixes of one list, so the smaller is part of the larger.
"""

import math
import re
from fractions import Fraction

from t5scaling.data import budget
from t5scaling.data.examples import Examples
from t5scaling.errors import UserError


def pool_rows(examples: Examples, pool: int | str | None) -> int:
    """How many rows of the examples make up a pool.

    `pool` is a number of text tokens (source and target together), or a share of the task's
    examples such as "0.2%" (rounded up to a whole example), or None for all of them. Raises
    UserError for anything else, and for more tokens than there are.
    """
    if pool is None:
        return len(examples)
    if isinstance(pool, str):
        share = _share(pool)
        wanted = math.ceil(share * examples.tokens(len(examples), "segments"))
        return budget.examples_for_tokens(examples, wanted, "segments")
    if not isinstance(pool, int) or pool < 1:
        raise _wrong(pool)
    return budget.examples_for_tokens(examples, pool)


def _share(pool: str) -> Fraction:
    number = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", pool)
    share = Fraction(number[1]) / 100 if number else Fraction(0)
    if not 0 < share <= 1:
        raise _wrong(pool)
    return share


def _wrong(pool: object) -> UserError:
    return UserError(
        f"finetuning pool {pool!r}: expected a number of text tokens, a share of the examples "
        "such as '0.2%', or None for all"
    )
