"""A law from a plain table, and one clear line for each way to get the table wrong."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from t5scaling.analysis.conclusions.curve_fit import fit_one
from t5scaling.analysis.fit_table import fit_table
from t5scaling.analysis.laws import LAWS
from t5scaling.analysis.results.harvest import harvest
from t5scaling.analysis.results.load import Columns
from t5scaling.errors import UserError
from tests.analysis_made_up_study import write_study

ROOT = Path(__file__).parents[1]
X = 1e6 * 2.0 ** np.arange(6)
LOSS = 2.0 + 60.0 * X**-0.25
SCORE = np.log(1e-3 * X**0.6) ** 1.7
NOISE = np.exp(0.03 * np.random.default_rng(0).standard_normal(6))


def table(path, header, rows, separator=","):
    lines = [separator.join(header), *(separator.join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_two_columns_falling(tmp_path, capsys):
    path = table(tmp_path / "a.csv", ["tokens", "loss"], zip(X, LOSS, strict=True))
    (result,) = fit_table(path)
    assert result.law.name == "power"
    assert result.fit.coefficients["E"][0] == pytest.approx(2.0, rel=1e-4)
    assert result.verdict.word == "predictable"
    printed = capsys.readouterr().out
    for part in ("power law with floor", "loss falls as tokens grows", "90% interval", "decades",
                 "each size predicted from those before it", "verdict: predictable",
                 "converged"):  # fmt: skip
        assert part in printed, part


def test_two_columns_rising_in_a_tsv(tmp_path, capsys):
    rows = list(zip(X, SCORE, strict=True))
    path = table(tmp_path / "a.tsv", ["tokens", "bleu"], rows, "\t")
    (result,) = fit_table(path)
    assert result.law.name == "log"
    assert result.fit.coefficients["beta"][0] == pytest.approx(1.7, rel=1e-3)
    assert "D0" in capsys.readouterr().out


def test_groups_and_json(tmp_path, capsys):
    rows = [("a", *r) for r in zip(X, LOSS, strict=True)]
    rows += [("b", *r) for r in zip(X, SCORE, strict=True)] + [("c", 1, 2), ("c", 2, 3)]
    path = table(tmp_path / "a.csv", ["run", "tokens", "y"], rows)
    results = fit_table(path, Columns(("tokens",), "y", ("run",)), protocol="paper", as_json=True)
    assert [r.law.name for r in results] == ["power", "log", "log"]
    record = json.loads(capsys.readouterr().out)
    assert [c["run"] for c in record["curves"]] == ["a", "b", "c"]
    first = record["curves"][0]
    assert first["fit"]["coefficients"]["alpha"]["value"] == pytest.approx(0.25, rel=1e-4)
    assert first["fit"]["extrapolation_decades"] == pytest.approx(np.log10(4))
    assert [p["held_out"] for p in first["points"]] == [False] * 4 + [True] * 2
    assert record["curves"][2]["fit"] is None
    assert "too few points" in record["curves"][2]["note"]


def test_all_laws_are_compared_on_held_out_points(tmp_path, capsys):
    path = table(tmp_path / "a.csv", ["tokens", "y"], zip(X, SCORE, strict=True))
    assert [r.law.name for r in fit_table(path, law="all")] == ["log"]
    printed = " ".join(capsys.readouterr().out.split())
    assert "y: families by their errors on sizes not fitted (protocol: rollout)" in printed
    path = table(tmp_path / "b.csv", ["tokens", "loss"], zip(X, LOSS, strict=True))
    assert [r.law.name for r in fit_table(path, law="all")] == ["power"]
    printed = " ".join(capsys.readouterr().out.split())
    assert "power law with floor predicts best" in printed


def test_each_curve_is_compared_by_the_laws_that_it_can_carry(tmp_path, capsys):
    long = 1e6 * 2.0 ** np.arange(9)
    rows = [("long", x, 2 + 60 * x**-0.25) for x in long]
    rows += [("short", x, 2 + 50 * x**-0.25) for x in long[:5]]
    rows += [("shorter", x, 2 + 50 * x**-0.25) for x in long[:3]]
    path = table(tmp_path / "a.csv", ["run", "tokens", "loss"], rows)
    results = fit_table(path, Columns(group=("run",)), law="all", as_json=True)
    assert len(results) == 3 and all(r.fit for r in results)
    record = json.loads(capsys.readouterr().out)
    compared = {c["metric"]: [f["law"] for f in c["families"]] for c in record["comparisons"]}
    assert compared["loss, curves of 9 sizes"][0] == "power"
    assert len(compared["loss, curves of 9 sizes"]) == 6
    assert set(compared["loss, curves of 5 sizes"]) == {"power", "m1", "m3", "onset"}
    assert record["not_compared"] == [
        "loss, curves of 3 sizes: 1 curve with too few sizes to compare two families of laws"
    ]


def test_what_is_held_out_can_be_chosen(tmp_path, capsys):
    path = table(tmp_path / "a.csv", ["tokens", "loss"], zip(X, LOSS, strict=True))
    (all_points,) = fit_table(path)
    assert len(all_points.fit.y) == 6 and not all_points.fit.held_out
    (below,) = fit_table(path, fit_below=X[4])
    (paper,) = fit_table(path, protocol="paper")
    assert [p.x for p in below.fit.held_out] == [p.x for p in paper.fit.held_out] == list(X[4:])
    assert "held out: RMS error" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match="each say what is held out: give one"):
        fit_table(path, fit_below=X[4], hold_out=1)
    with pytest.raises(UserError, match="x is a loss"):
        fit_table(path, law="gordon", fit_below=X[4])


def test_short_curves_of_a_bounded_score_get_a_law_that_saturates(tmp_path):
    rows = []
    for i in range(4):
        noise = np.exp(0.01 * np.random.default_rng(i).standard_normal(4))
        y = (30 + i) / (1 + (8e6 / X[:4]) ** 0.9) * noise
        rows += [(i, *row) for row in zip(X[:4], y, strict=True)]
    path = table(tmp_path / "a.csv", ["pair", "tokens", "bleu"], rows)
    results = fit_table(path, Columns(group=("pair",)))
    assert {r.law.name for r in results} <= {"hill", "ceiling"}
    far = np.array([64 * X[3]])
    for i, result in enumerate(results):
        truth = (30 + i) / (1 + (8e6 / far) ** 0.9)
        paper = fit_one(result.curve, LAWS["log"])
        ours, papers = (abs(np.log(one.fit.predict(far) / truth)) for one in (result, paper))
        assert ours < papers


def test_no_prediction_passes_the_end_of_the_scale(tmp_path, capsys):
    rows = zip(X, 9 * (X / X[0]) ** 0.55, strict=True)
    (result,) = fit_table(table(tmp_path / "a.csv", ["tokens", "bleu"], rows), law="log")
    far = np.array([1e3 * X[-1]])
    assert result.fit.predict(far)[0] > 100 == result.predict(far)[0]
    assert max(end[0] for end in result.band(far)) == 100 and result.leaves_scale(far[0])
    assert "passes 100, the end of the scale of BLEU" in " ".join(capsys.readouterr().out.split())


def test_a_forgotten_group_is_named(tmp_path, capsys):
    rows = [
        (data, seed, x, y * (1 + 0.4 * (data == "b")) * (1 + 0.01 * seed))
        for data in "ab" for seed in (0, 1) for x, y in zip(X, LOSS, strict=True)
    ]  # fmt: skip
    path = table(tmp_path / "a.csv", ["data", "seed", "tokens", "loss"], rows)
    fit_table(path, Columns(("tokens",), "loss"))
    assert "--group=data --seed=seed" in capsys.readouterr().err
    fit_table(path, Columns(("tokens",), "loss", ("data",)))
    assert "--group" not in capsys.readouterr().err


def test_rows_at_zero_are_the_baseline(tmp_path, capsys):
    rows = [(0, 9.0), (0, 9.2), *zip(X, LOSS, strict=True)]
    (result,) = fit_table(table(tmp_path / "a.csv", ["tokens", "loss"], rows))
    (without,) = fit_table(table(tmp_path / "b.csv", ["tokens", "loss"], rows[2:]))
    assert result.curve.baseline_value == pytest.approx(9.1)
    assert capsys.readouterr().out.count("without pretraining: 9.1 (not a point of the law)") == 1
    assert result.fit.coefficients == without.fit.coefficients


def test_repeated_rows_and_mixed_units_are_pointed_out(tmp_path, capsys):
    rows = list(zip(X, LOSS, strict=True))
    fit_table(table(tmp_path / "a.csv", ["tokens", "loss"], rows))
    assert capsys.readouterr().err == ""
    fit_table(table(tmp_path / "a.csv", ["tokens", "loss"], [*rows, rows[0]]), as_json=True)
    captured = capsys.readouterr()
    assert f"row {len(rows) + 2} repeats row 2" in captured.err
    json.loads(captured.out)
    mixed = [(x if i % 2 else x / 1e6, y) for i, (x, y) in enumerate(rows)]
    fit_table(table(tmp_path / "a.csv", ["tokens", "loss"], mixed))
    assert "are some given in millions or billions?" in capsys.readouterr().err


def test_hold_out_and_delta_reach_the_fit(tmp_path):
    path = table(tmp_path / "a.csv", ["tokens", "y"], zip(X, LOSS, strict=True))
    (result,) = fit_table(path, hold_out=1, delta=0.05)
    assert len(result.fit.held_out) == 1
    assert result.fit.delta == 0.05


def test_a_study_table_needs_no_columns(tmp_path):
    results = fit_table(harvest(write_study(tmp_path)))
    assert {(r.curve.metric, r.law.name) for r in results} == {
        ("cross_entropy", "power"),
        ("bleu", "log"),
        ("chrf", "log"),
    }
    assert len(results) == 6


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,b\n1,2\n2,x\n", {}, r"row 3: b = 'x' is not a number"),
        ("a,b\n1,inf\n", {}, r"row 2: b = 'inf' is not a number"),
        ("a,b\n0,3\n", {}, r"no rows with a > 0"),
        ("a,b\n1,2\n-4,3\n", {}, r"row 3: a = -4: sizes must be positive"),
        ("a,b\n1,2\n2,3\n", {}, r"2 distinct a to fit: too few points .* 3"),
        ("a,b\n1,2,3\n", {}, r"row 2: 3 cells, the header has 2"),
        ("a,b\n", {}, "no rows"),
        ("a,b\n1,\n2,nan\n", {}, "no rows with a > 0 and a value of b"),
        ("", {}, "empty"),
        ("a,b,c\n1,2,3\n", {}, r"3 columns \(a, b, c\): say which is x"),
        (
            "tokens,loss\n1,2\n",
            {"columns": Columns(("token",), "loss")},
            r"'token'; did you mean 'tokens'",
        ),
        ("a,b\n1,2\n", {"law": "all", "protocol": "role"}, r"did you mean 'rollout'"),
        ("a,b\n1,2\n", {"law": "powr"}, r"'powr' is unknown; did you mean 'power'"),
        ("a,b\n1,0\n2,1\n4,2\n8,3\n", {}, r"b = 0 at a = 1: the log-law .* values > 0"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, text, options, message):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        fit_table(path, **options)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value) or "law" in options
    assert capsys.readouterr().out == ""


def test_missing_file_and_binary_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        fit_table(tmp_path / "none.csv")
    with pytest.raises(UserError, match="neither a study"):
        fit_table(tmp_path)
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8 text; expected CSV"):
        fit_table(tmp_path / "x.csv")


def test_starts_fast_and_imports_little(tmp_path):
    path = table(tmp_path / "a.csv", ["tokens", "loss"], zip(X, LOSS * 1.001, strict=True))
    code = (
        "import sys; from t5scaling.analysis.fit_table import fit_table; fit_table(sys.argv[1]);"
        "heavy = {'jax', 'tensorflow', 'matplotlib', 'pandas', 'scipy', 'flax'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "verdict" in done.stdout
    assert time.monotonic() - started < 10  # 1 s on an idle machine; test machines are busy


def test_parquet_two_sizes_and_columns_of_errors_and_seeds(tmp_path, capsys):
    import pandas

    pools = (1e4, 1e5, 1e6)
    rows = [
        (x, pool, 1.5 + 60 / (x**0.12 * pool**0.1), 0.01, seed)
        for x in X for pool in pools for seed in (0, 1)
    ]  # fmt: skip
    path = tmp_path / "a.parquet"
    names = ["dp", "df", "loss", "se", "seed"]
    pandas.DataFrame(rows, columns=names).to_parquet(path)
    columns = Columns(("dp", "df"), "loss", (), "se", "seed")
    (result,) = fit_table(path, columns, hold_out=1, interval="seeds")
    assert result.law.name == "zhang" and result.fit.interval == "seeds"
    assert result.fit.coefficients["a"][0] == pytest.approx(0.12, rel=1e-2)
    told = " ".join(capsys.readouterr().out.split())
    assert "D_p = dp, D_f = df" in told and "intervals by seeds" in told
    assert "weighted by their errors" in told
    (result,) = fit_table(path, columns, law="all", protocol="last")
    assert result.law.name == "zhang" and result.fit.held_out
    assert "(protocol: last)" in capsys.readouterr().out
    (tmp_path / "b.parquet").write_text("no parquet")
    with pytest.raises(UserError, match="not a parquet file"):
        fit_table(tmp_path / "b.parquet")


def test_coefficients_that_the_points_leave_open_are_named(tmp_path, capsys):
    rows = zip(X, 0.02 * X**0.45, strict=True)
    fit_table(table(tmp_path / "a.csv", ["tokens", "y"], rows), interval="profile")
    told = " ".join(capsys.readouterr().out.split())
    assert "intervals by profile" in told
    fit_table(table(tmp_path / "b.csv", ["tokens", "y"], zip(X, SCORE * NOISE, strict=True)))
    told = " ".join(capsys.readouterr().out.split())
    assert "These points do not determine" in told and "They do determine" in told
    assert "the value at tokens =" in told and "the slope of its log there" in told


def test_a_directory_of_t5x_runs(tmp_path):
    for i, x in enumerate(X):
        run = tmp_path / "runs_of_t5x" / f"finetune_{i}"
        (run / "inference_eval").mkdir(parents=True)
        steps = int(x)
        (run / "config.gin").write_text(f"INITIAL_CHECKPOINT_PATH = '/p/base/checkpoint_{steps}'\n")
        line = json.dumps({"step": steps + 300, "bleu": float(SCORE[i])})
        (run / "inference_eval" / "wmt-metrics.jsonl").write_text(line + "\n")
    (result,) = fit_table(tmp_path / "runs_of_t5x", Columns(y="bleu"))
    assert result.curve.x_name == "pretrain_steps" and result.law.name == "log"
    assert [p.x for p in result.curve.points] == X.tolist()
    assert result.curve.place.key["pretrain_run"] == "base"
    with pytest.raises(UserError, match="is a directory: --x"):
        fit_table(tmp_path / "runs_of_t5x", Columns(("step",), "bleu"))
    with pytest.raises(UserError, match="no metric 'blue'; did you mean 'bleu'"):
        fit_table(tmp_path / "runs_of_t5x", Columns(y="blue"))
