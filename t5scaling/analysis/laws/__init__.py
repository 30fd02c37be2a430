"""The scaling laws: one small class per law, and the tables of all of them.

`paper` has the two that the paper fits, `one_size` their rivals, `of_loss` the laws of a score
against a loss, `two_sizes` those of two sizes, `transfer` those of transfer, `rising` those
of what grows with compute, `several_sources` those of the tokens of each language; `formula` makes
a law of a text. To add a law, write a class as `base.Law` says and enter it in
its file's LAWS; a law of several sources, which is made for the sources of a table, in KINDS.
"""

from functools import cache

from t5scaling.analysis.laws import of_loss, one_size, paper, rising, transfer, two_sizes
from t5scaling.analysis.laws.base import Law
from t5scaling.analysis.laws.several_sources import KINDS, OfSources

LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        *paper.LAWS, *one_size.LAWS, *of_loss.LAWS, *two_sizes.LAWS, *transfer.LAWS,
        *rising.LAWS,
    )
}  # fmt: skip


@cache
def of_sources(kind: str, sources: tuple[str, ...]) -> OfSources:
    """The law of a kind in `several_sources.KINDS` for these sources, the target's first.

    Raises UserError for fewer than two sources, or two of one name.
    """
    return KINDS[kind](sources)
