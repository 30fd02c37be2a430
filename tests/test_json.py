"""What --json prints is what docs/json.md says; of a study's files `test_report` says so."""

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from t5scaling.command_line import main
from t5scaling.verbs import VERBS

ROOT = Path(__file__).parents[1]
TYPES = {"text": str, "number": (int, float), "truth": bool, "null": type(None), "object": dict}
X = 1e6 * 2.0 ** np.arange(5)


@cache
def schema():
    """object -> field -> (type, whether it may be missing)."""
    found, fields = {}, {}
    for line in (ROOT / "docs" / "json.md").read_text().splitlines():
        if line.startswith("## "):
            fields = found.setdefault(line[3:], {})
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] != "field":
            fields[cells[0].rstrip("?")] = cells[1], cells[0].endswith("?")
    found["findings"] = {**found["advise"], **found["findings"]}
    return found


def check(value, type_, where):
    """Fails if the value is not of a type of the document."""
    kinds = type_.split(" or ")
    if len(kinds) > 1:
        simple = [kind for kind in kinds if kind in TYPES and isinstance(value, TYPES[kind])]
        rest = [kind for kind in kinds if kind not in TYPES]
        assert simple or rest, f"{where}: {value!r} is not {type_}"
        if (simple and value is None) or not rest:
            return
        (type_,) = rest
    if type_.startswith("list of "):
        assert isinstance(value, list), where
        for i, item in enumerate(value):
            check(item, type_.removeprefix("list of "), f"{where}[{i}]")
    elif type_.startswith("map of "):
        for name, item in value.items():
            check(item, type_.removeprefix("map of "), f"{where}.{name}")
    elif type_ in TYPES:
        assert isinstance(value, TYPES[type_]), f"{where}: {value!r} is not {type_}"
        assert type_ != "number" or not isinstance(value, bool), where
    else:
        check_object(value, type_.removeprefix("object "), where)


def check_object(value, name, where):
    fields = schema()[name]
    assert isinstance(value, dict), f"{where}: {value!r}"
    free = fields.get("NAME")
    needed = {field for field, (_, optional) in fields.items() if not optional} - {"NAME"}
    assert needed <= value.keys(), f"{where}: {needed - value.keys()} missing"
    for field, item in value.items():
        assert field in fields or free, f"{where}: {field} is not documented"
        check(item, (fields.get(field) or free)[0], f"{where}.{field}")


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    noise = np.random.default_rng(0)

    def write(name, header, rows):
        path = folder / name
        path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]))
        return str(path)

    one = [
        (data, 0, x, (2 + k * 60 * x**-0.25) * np.exp(0.01 * noise.standard_normal()))
        for data, k in (("en", 1), ("de", 1.2)) for x in X
    ]  # fmt: skip
    two = [(a, b, 1.5 + 60 / (a**0.12 * b**0.1)) for a in X for b in (1e4, 1e5, 1e6)]
    return {
        "one": write("one.csv", "data,seed,tokens,loss",
                     [*one, ("en", 0, 0, 9), ("fr", 0, 1e6, 3), ("en", 0, 3e6, "")]),
        "two": write("two.csv", "n,d,loss", two),
    }  # fmt: skip


ONE = ("--x=tokens", "--y=loss", "--group=data", "--seed=seed")


@pytest.mark.parametrize(
    ("verb", "table", "options"),
    [
        ("fit", "one", ONE),
        ("fit", "one", (*ONE, "--law=all")),
        ("fit", "two", ("--x=n,d", "--y=loss", "--hold_out=1")),
        ("advise", "one", ONE),
        ("figures", "one", ONE),
    ],
)
def test_what_a_verb_prints(tables, capsys, tmp_path, verb, table, options):
    output = [f"--output={tmp_path}"] if verb == "figures" else []
    assert main([verb, tables[table], *options, *output, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    check_object(record, verb, verb)
    if table == "one":
        assert any("1 row left out: no value of loss" in text for text in record["warnings"])
    if "--law=all" in options:
        assert record["comparisons"]
    if table == "two":
        (curve,) = record["curves"]
        assert curve["x2"] == "d" and all("x2" in point for point in curve["points"])


def test_every_verb_with_json_is_documented():
    verbs = {name for name, verb in VERBS.items() for a in verb.arguments if a.flag == "--json"}
    assert verbs <= schema().keys()


def test_a_field_that_is_not_documented_is_noticed():
    with pytest.raises(AssertionError, match="colour is not documented"):
        check_object({"title": "", "caption": "", "png": "", "svg": "", "csv": "", "colour": ""},
                     "figure", "a")  # fmt: skip
    with pytest.raises(AssertionError, match=re.escape("{'csv'} missing")):
        check_object({"title": "", "caption": "", "png": "", "svg": ""}, "figure", "a")
    with pytest.raises(AssertionError, match="is not text"):
        check_object({"title": 1, "caption": "", "png": "", "svg": "", "csv": ""}, "figure", "a")
