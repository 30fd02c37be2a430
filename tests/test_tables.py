"""Tables as people have them: what a cell means, how a file is packed, which rows count."""

import bz2
import gzip
import io
import lzma
import sys
import zipfile

import pytest

from t5scaling.analysis.results.load import Columns, load_curves
from t5scaling.errors import UserError

XY = Columns(("x",), "y")


def points(tmp_path, content, columns=XY, name="a.csv"):
    """(sizes, values, warnings) of the first curve."""
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    warnings: list[str] = []
    curve = load_curves(path, columns, warnings.append)[0]
    return [p.x for p in curve.points], [p.value for p in curve.points], warnings


@pytest.mark.parametrize(
    ("text", "x", "y"),
    [
        ("x;y\n1000000;2,534\n2000000;2,5\n", [1e6, 2e6], [2.534, 2.5]),
        ("x;y\n1.000.000;2,534\n20.000.000;2,125\n", [1e6, 2e7], [2.534, 2.125]),
        ("x;y\n1.500;2,53\n2.500;2,51\n", [1500, 2500], [2.53, 2.51]),
        ('x,y\n"1,234",2.53\n"12,345",2.51\n', [1234, 12345], [2.53, 2.51]),
        ('x,y\n"1,234,567",25\n', [1234567], [25]),
        ("x\ty\n1 000\t1.500\n2'000\t1.250\n3\u00a0000\t1.125\n", [1e3, 2e3, 3e3],
         [1.5, 1.25, 1.125]),
        ("x;y\n100;0,123\n200;0,456\n", [100, 200], [0.123, 0.456]),
        ("x,y\n100M,25.6%\n1.6B,30%\n2.3 B,31.5 %\n1T,32%\n", [1e8, 1.6e9, 2.3e9, 1e12],
         [25.6, 30, 31.5, 32]),
        ("x|y\n70m|3.1\n1e9|+2.9\n100_000_000|-.5\n", [7e7, 1e9, 1e8], [3.1, 2.9, -0.5]),
        ("x   y\n1     2.5\n10    2.25\n", [1, 10], [2.5, 2.25]),
        (",x,y\n0,1,2.5\n1,10,2.25\n", [1, 10], [2.5, 2.25]),
        ("\ufeffx,y\r\n1,2.5\r\n\r\n10,2.25\r\n", [1, 10], [2.5, 2.25]),
        ('{"x": 1.234, "y": 2}\n\n{"y": 3, "x": "5,5"}\n', [1.234, 5.5], [2, 3]),
        ('[{"x": 1, "y": 2}, {"x": 3, "y": 4}]', [1, 3], [2, 4]),
        ('{"x": [1, 3], "y": [2, 4]}', [1, 3], [2, 4]),
        ('{"x": {"0": 1, "1": 3}, "y": {"0": 2, "1": 4}}', [1, 3], [2, 4]),
    ],
)  # fmt: skip
def test_numbers_as_people_write_them(tmp_path, text, x, y):
    assert points(tmp_path, text) == (x, y, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x;y\n100;1,234\n200;2,345\n",
         "row 2: y = 1,234 could be 1234 or 1.234, and no other cell decides: say --decimal"),
        ("x;y\n1,5;2.5\n1.5;2.5\n", r"mark of x is not the same in row 2 \(1,5\) and row 3"),
        ("x,y\n1,85%\n2,0.86\n", "y is in per cent in row 2 and not in row 3"),
        ("x,y\n1,3m\n", r"row 2: y = '3m' is not a number; write 100M for millions"),
        ("x,y\n1,1e3M\n", "row 2: y = '1e3M' is not a number"),
        ("x,y\n1,12 34\n", "row 2: y = '12 34' is not a number"),
        ("x,y\n1000,2,5\n", "3 cells, the header has 2 .a decimal comma needs another separator"),
        ("1000,2.5\n2000,2.25\n", "the header is missing: the first row is 1000, 2.5; put"),
        ("100M,2.5\n1.6B,2.25\n", "the header is missing"),
        ('{"x": 1, "y": [2]}\n{"x": 1, "y": 2}\n', "row 1: y holds several values"),
        ('{"x": 1, "y": 2}\n{"x": 1, "y": 2\n', "row 2: not JSON"),
        ('[{"x": 1, "y": 2},\n{"x": 1, "y": 2\n', "row 3: not JSON"),
        ('{"x": true, "y": 2}\n', "row 1: x = 'True' is not a number"),
        ('[1, 2]', "row 1: expected an object of columns"),
        ('{"x": [1, 2], "y": [2]}', "columns of 1 to 2 values"),
    ],
)  # fmt: skip
def test_what_could_be_two_numbers_is_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as raised:
        points(tmp_path, text)
    assert "\n" not in str(raised.value)


def test_the_decimal_mark_can_be_given(tmp_path):
    text = "x;y\n100;1,234\n200;2,345\n"
    assert points(tmp_path, text, Columns(("x",), "y", decimal=","))[1] == [1.234, 2.345]
    assert points(tmp_path, text, Columns(("x",), "y", decimal="."))[1] == [1234, 2345]


def test_rows_with_missing_cells_are_left_out_and_counted(tmp_path):
    text = "x,y,se\n1,2,1\n2,,1\n4,NaN,1\n8,n/a,1\n,3,1\n16,3,-\n32,3,1\n"
    x, y, warnings = points(tmp_path, text, Columns(("x",), "y", error="se"))
    assert (x, y) == ([1, 32], [2, 3])
    assert [w.split(": ", 1)[1] for w in warnings] == [
        "3 rows left out: no value of y",
        "1 row left out: no value of x",
        "1 row left out: no value of se",
    ]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, "zip", "utf-16"])
def test_packed_files(tmp_path, pack):
    text = "x,y\n1,2.5\n10,2.25\n"
    if pack == "zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("a.csv", text)
        content = buffer.getvalue()
    else:
        content = text.encode(pack) if pack == "utf-16" else pack(text.encode())
    assert points(tmp_path, content, name="a.csv.packed") == ([1, 10], [2.5, 2.25], [])
    if pack not in ("zip", "utf-16"):
        with pytest.raises(UserError, match="damaged"):
            points(tmp_path, content[:-9], name="b")


def test_packed_by_something_else(tmp_path):
    with pytest.raises(UserError, match="packed by zstd"):
        points(tmp_path, b"\x28\xb5\x2f\xfd1234")


def test_excel(tmp_path, monkeypatch):
    import pandas

    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(UserError, match="reading xlsx needs the Python package openpyxl"):
        points(tmp_path, b"x", name="a.xlsx")
    monkeypatch.undo()
    pytest.importorskip("openpyxl")
    path = tmp_path / "b.xlsx"
    rows = [(None, None), (1000, 2.5), (2000, None), ("4.000", "2,25")]
    pandas.DataFrame(rows, columns=["x", "y"]).to_excel(path, index=False)
    assert points(tmp_path, path.read_bytes(), name="b.xlsx") == (
        [1000, 4000], [2.5, 2.25], [f"{path}: 1 row left out: no value of y"],
    )  # fmt: skip
    with pytest.raises(UserError, match="not an xlsx file"):
        points(tmp_path, b"no workbook", name="c.xlsx")


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x,y\n1,2\n2,3\n")))
    (curve,) = load_curves("-")
    assert [p.value for p in curve.points] == [2, 3]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(UserError, match="standard input: empty"):
        load_curves("-")


@pytest.mark.parametrize(
    ("name", "words"),
    [("part", ("train", "test")), ("part", ("fit", "held_out")), ("is_train", ("True", "False")),
     ("test", ("0", "1")), ("held_out", ("no", "yes"))],
)  # fmt: skip
def test_a_column_splits_what_is_fitted_from_what_is_held_out(tmp_path, name, words):
    path = tmp_path / "a.csv"
    path.write_text(f"x,y,{name}\n1,2,{words[0]}\n2,3,{words[0]}\n4,5,{words[1]}\n")
    (curve,) = load_curves(path, Columns(("x",), "y", split=name))
    assert [p.held_out for p in curve.points] == [False, False, True]


def test_a_split_that_is_not_clear_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x,y,part\n1,2,true\n2,3,false\n")
    with pytest.raises(UserError, match="does not say whether true means fitted"):
        load_curves(path, Columns(("x",), "y", split="part"))
    path.write_text("x,y,part\n1,2,trian\n")
    with pytest.raises(UserError, match="part = trian: expected train or test"):
        load_curves(path, Columns(("x",), "y", split="part"))


def test_one_warning_for_each_kind(tmp_path):
    rows = [f"{run},{x},{3 - x / 1e8}" for run in range(40) for x in (10, 20, 1e7, 1e7)]
    columns = Columns(("x",), "y", ("run",))
    _, _, warnings = points(tmp_path, "\n".join(["run,x,y", *rows]), columns)
    assert len(warnings) == 2
    assert "40 rows repeat others (the first: row 5 repeats row 4)" in warnings[0]
    assert "without a point between (and 39 more such gaps)" in warnings[1]


def test_curves_that_were_not_set_apart_are_noticed(tmp_path):
    rows = [
        (data, task, seed, x, 5 + x / 7 + seed / 100 + len(data) + len(task))
        for data in ("en", "de50") for task in ("a", "bc", "def") for seed in (0, 1)
        for x in (1, 2, 4, 8)
    ]  # fmt: skip
    text = "\n".join(["data,task,seed,x,y", *(",".join(map(str, row)) for row in rows)])

    def advice(**columns):
        (warning,) = points(tmp_path, text, Columns(("x",), "y", **columns))[2] or [""]
        return warning.partition("did you mean ")[2]

    assert advice() == "--group=task,data --seed=seed?"
    assert advice(group=("task",)) == "--group=task,data --seed=seed?"
    assert advice(group=("task", "data")) == "--seed=seed?"
    assert advice(group=("task", "data"), seed="seed") == ""
