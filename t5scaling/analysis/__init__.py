"""From runs or a table to laws, conclusions and pages; needs no accelerator and no T5.

The files beside this one are the verbs of the command line, one each. They use the rooms below, of
which each may import those after it, and no room one before it (tests/test_imports.py):

- `presentation`: figures, terminal and pages; shows what was concluded and decides nothing;
- `conclusions`: shapes, forecasts, advice, claims; the product of a study, `findings.Findings`;
- `results`: from run directories, T5X's directories or a user's own file to curves;
- `fitting` and `laws`: a library of numerics, which imports no other room;
- `metrics` and `wording`: what metrics are, and how numbers are written.
"""
