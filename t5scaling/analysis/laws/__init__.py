"""The scaling laws: one small class per law, and the table of all of them.

`paper` has the two that the paper fits, `one_size` their rivals, `of_loss` the laws of a score
against a loss, `two_sizes` those of two sizes, `rising` those of what grows with compute. `formula`
makes a law of a text. To add a law, write a class as `base.Law` says and
enter it in its file's LAWS.
"""

from t5scaling.analysis.laws import of_loss, one_size, paper, rising, two_sizes
from t5scaling.analysis.laws.base import Law

LAWS: dict[str, Law] = {
    law.name: law
    for laws in (paper.LAWS, one_size.LAWS, of_loss.LAWS, two_sizes.LAWS, rising.LAWS)
    for law in laws
}
