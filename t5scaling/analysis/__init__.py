"""From runs or a table to laws, conclusions and pages; needs no accelerator and no T5.

In a notebook: `from t5scaling.analysis import fit, compare` (docs/python.md; `api` says what they
do). Importing this package alone imports nothing else.

The files beside this one are the verbs of the command line, one each, and `api`. They use the rooms
below, of which each may import those after it, and no room one before it (tests/test_imports.py):

- `presentation`: figures, terminal and pages; shows what was concluded and decides nothing;
- `conclusions`: shapes, forecasts, advice, claims; the product of a study, `findings.Findings`;
- `results`: from run directories, T5X's directories or a user's own file to curves;
- `fitting` and `laws`: a library of numerics, which imports no other room;
- `metrics` and `wording`: what metrics are, and how numbers are written.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t5scaling.analysis.api import ComparedLaws, Estimate, FittedLaw, compare, fit
    from t5scaling.analysis.laws import LAWS
    from t5scaling.errors import UserError

__all__ = ["LAWS", "ComparedLaws", "Estimate", "FittedLaw", "UserError", "compare", "fit"]


def __getattr__(name: str) -> Any:
    """The names above, when they are asked for: a verb that starts loads none of them."""
    import importlib

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = {"LAWS": "t5scaling.analysis.laws", "UserError": "t5scaling.errors"}
    return getattr(importlib.import_module(homes.get(name, "t5scaling.analysis.api")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
