"""From run directories to table, fits, figures and page; the same runs give the same bytes."""

import csv
import hashlib
import io
import itertools
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree

import pytest
from rich.console import Console

from t5scaling.analysis.report import report
from t5scaling.analysis.results.curves import curves_of, read_results
from t5scaling.analysis.results.harvest import COLUMNS, harvest, read_runs, runs_of
from t5scaling.analysis.results.load import load_curves
from t5scaling.analysis.wording import short_size, size
from t5scaling.errors import UserError
from tests.analysis_made_up_study import CROSS_ENTROPY, SIZES, TASK, write_run, write_study
from tests.test_json import check_object

PRODUCTS = ("results.csv", "runs.jsonl", "fits.json", "findings.json", "report.html")


def quiet():
    return Console(file=io.StringIO(), width=140)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study with a failed and an unfinished run, and its report."""
    folder = write_study(tmp_path_factory.mktemp("study"))
    for rate, failure in ((0.1, "NaN <in> the loss at step 7"), (0.2, None)):
        write_run(
            folder, 0, 1_000, rate, 0, cross_entropy=1.0, done=False,
            failure=failure,
        )  # fmt: skip
    screen = quiet()
    path = report(folder, screen=screen)
    return folder, path.read_text(encoding="utf-8"), screen.file.getvalue()


def digests(folder):
    files = [folder / name for name in PRODUCTS] + sorted((folder / "figures").iterdir())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def rows_of(folder):
    with open(folder / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_results_table(study):
    folder, _, _ = study
    rows = rows_of(folder)
    assert tuple(rows[0]) == COLUMNS
    # sizes x pools x rates x splits x metrics; nothing of unfinished, failed, or pretraining runs
    assert len(rows) == 7 * 2 * 2 * 2 * 4
    metrics = {"cross_entropy", "bleu", "bleu_brevity_penalty", "chrf"}
    assert {row["metric"] for row in rows} == metrics
    row = next(
        r for r in rows
        if (r["pretrain_tokens"], r["finetune_examples"], r["learning_rate"], r["split"])
        == ("303104", "1000", "0.005", "test") and r["metric"] == "cross_entropy"
    )  # fmt: skip
    assert float(row["value"]) == CROSS_ENTROPY[1_000][3] + 0.03
    assert row["alignment"] == "1.0"
    assert row["finetune_positions"] == "128000"
    assert row["metric_signature"] == ""
    baseline = next(r for r in rows if r["pretrain_tokens"] == "0")
    assert (baseline["alignment"], baseline["pretrain_data"]) == ("", "")
    assert next(r for r in rows if r["metric"] == "bleu")["metric_signature"].startswith("nrefs:1")


def test_same_runs_same_bytes(study, tmp_path):
    """In whatever order they were written; and, of a published study, from the tables alone."""
    folder, _, _ = study
    before = digests(folder)
    assert len(before) == 5 + 3 * len(list((folder / "figures").glob("*.svg")))
    again = write_study(tmp_path)
    for rate, failure in ((0.2, None), (0.1, "NaN <in> the loss at step 7")):
        write_run(
            again, 0, 1_000, rate, 0, cross_entropy=1.0, done=False,
            failure=failure,
        )  # fmt: skip
    report(again, screen=quiet())
    assert digests(again) == before
    # Without the runs, over files that are none of them what they were.
    shutil.rmtree(again / "runs")
    for file in [again / name for name in PRODUCTS[2:]] + list((again / "figures").iterdir()):
        file.write_text("old")
    report(again, screen=quiet())
    assert digests(again) == before
    (again / "runs.jsonl").unlink()
    with pytest.raises(UserError, match=r"neither runs/ nor runs\.jsonl"):
        report(again, screen=quiet())


def test_nothing_temporary_is_left(study):
    folder, _, _ = study
    assert not list(folder.rglob("*.tmp"))


def test_fits_file(study):
    folder, _, _ = study
    record = json.loads((folder / "fits.json").read_text())
    assert re.fullmatch(r"t5scaling \d+\.\d+\.\d+", record["software"])
    assert record["level"] == 0.9
    by_curve = {(c["metric"], c["finetune_examples"]): c for c in record["curves"]}
    assert len(by_curve) == 6
    falling = by_curve["cross_entropy", 1_000]
    assert falling["law"] == "power"
    assert falling["verdict"]["word"] == "unpredicted"
    assert falling["baseline"] == pytest.approx(CROSS_ENTROPY[1_000][0] + 0.03)
    assert [p["x"] for p in falling["points"]] == list(SIZES[1:])
    assert not any(p["held_out"] for p in falling["points"])
    assert {p["learning_rate"] for p in falling["points"]} == {0.005}
    fit = falling["fit"]
    assert set(fit["coefficients"]) == {"E", "A", "alpha"}
    for coefficient in fit["coefficients"].values():
        assert coefficient["low"] <= coefficient["value"] <= coefficient["high"]
    check = falling["check"]
    assert check["kind"] == "rollout" and [p["k"] for p in check["predictions"]] == [3, 4, 5]
    last = check["predictions"][-1]
    assert last["relative_error"] == pytest.approx(last["predicted"] / last["measured"] - 1)
    assert last["decades"] == pytest.approx(0.301, abs=1e-3) and fit["held_out"] == []
    noise = by_curve["bleu", 1_000]
    assert noise["law"] == "log"
    assert noise["verdict"]["word"] == "trendless"
    assert "D0" in noise["fit"]["coefficients"]


def test_findings_file(study):
    """What the page shows as data: conclusions with place, numbers, answer and reason."""
    folder, html, _ = study
    found = json.loads((folder / "findings.json").read_text())
    check_object(found, "findings", "findings")
    check_object(json.loads((folder / "fits.json").read_text()), "fit", "fits")
    assert (found["schema"], found["level"], found["model"]) == (1, 0.9, "tiny")
    place = {"model": "tiny", "pretrain_data": "techdoc_span_en50_de50", "task": TASK}
    here = place | {"finetune_examples": 10_000}
    falling = next(
        c for c in found["curves"] if (c["metric"], c["place"]) == ("cross_entropy", here)
    )
    gain = falling["worth_it"]
    assert falling["shape"] in ("predictable", "unpredicted") and gain["answer"] == "yes"
    assert gain["low"] < gain["value"] < gain["high"] and "whole interval" in gain["reason"]
    assert found["transfers"][0]["place"] == found["exchanges"][0]["place"] == place
    assert found["exchanges"][0]["fits_points"] is False
    assert [claim["letter"] for claim in found["claims"]] == list("abcdefg")
    for claim in found["claims"]:
        assert {claim["answer"]} | {f["answer"] for f in claim["findings"]} <= {
            "yes", "no", "cannot tell",
        }  # fmt: skip
        assert claim["title"] in html
    assert found["headline"]["gains"][0]["place"]["task"] == TASK
    assert all(sentence in html for sentence in found["limits"])


def test_page_is_self_contained_and_says_what_is_so(study):
    folder, html, _ = study
    assert "<script" not in html
    assert not re.findall(r"""src=["'](?!data:)""", html)
    links = set(re.findall(r"""href=["']([^"'#]+)""", html))
    assert links == {"https://arxiv.org/abs/2402.04177"}  # to follow, not to load
    assert set(re.findall(r"""href=["']#([^"']+)""", html)) == set(
        re.findall(r'<section id="(\w+)', html)
    )
    assert "url(" not in html
    shown = len(list((folder / "figures").glob("*.svg")))
    assert html.count("data:image/svg+xml;base64,") == shown > 3
    assert 'name="viewport"' in html
    text = re.sub(r"<[^>]+>", " ", html)
    for part in (
        "smoke-sized study", "One seed", "is a pool, not an amount of training", "draw 38% of it",
        "BLEU stays below 1", "trendless", "predictable", "alignment score 1", "1 failed",
        "1 not finished", "NaN &lt;in&gt; the loss", "smallest or largest", "decades further",
        "470,000", "1,280,000", "tok:13a", "without pretraining it is 6.55",
        "What to pay for", "Is pretraining worth it? yes", "is worth more than 10 times the",
        "no exchange rate is reported, because the multiplicative joint law misses",
        "No forecast: no law should be read into this curve", "chrF and Cross-entropy DISAGREE",
        "assumed (a finetuning costs 1 unit",
    ):  # fmt: skip
        assert part in text, part


def test_page_is_well_formed(study):
    _, html, _ = study
    body = html.split("<body>")[1].split("</body>")[0]
    body = re.sub(r"<img ([^>]*)>", r"<img \1/>", body)
    ElementTree.fromstring(f"<body>{body}</body>")


def test_terminal_tables(study):
    _, _, printed = study
    for part in ("not pretrained", "2,400,256", "5.37", "power law with floor", "trendless"):
        assert part in printed, part


def test_figures(study):
    folder, _, _ = study
    names = {file.name for file in (folder / "figures").iterdir()}
    by_pool = {name for name in names if "--techdoc_span_en50_de50--tiny." in name}
    assert len(by_pool) == 6  # cross-entropy and chrF: BLEU is noise
    for kind in ("joint--", "rollout--cross_entropy", "families--chrf",
                 "chrf--against--cross_entropy"):  # fmt: skip
        assert {f"{kind}*.{e}" for e in ("png", "svg", "csv")} == {
            f"{kind}*.{name.rsplit('.', 1)[1]}" for name in names if name.startswith(kind)
        }, kind
    for name in names:
        content = (folder / "figures" / name).read_bytes()
        if name.endswith(".png"):
            assert content.startswith(b"\x89PNG")
        elif name.endswith(".svg"):
            ElementTree.fromstring(content)
            assert b"<dc:date>" not in content
        elif name in by_pool:
            rows = list(csv.DictReader(io.StringIO(content.decode())))
            kinds = {row["kind"] for row in rows}
            assert kinds == {"fitted", "not pretrained", "law"}
            assert sum(row["kind"] == "fitted" for row in rows) == 12
            law = [row for row in rows if row["kind"] == "law"]
            assert all(float(r["low"]) <= float(r["value"]) <= float(r["high"]) for r in law) or (
                "cross_entropy" not in name
            )


def test_rate_is_chosen_by_validation_not_by_test(tmp_path):
    """The rate with the lower validation loss is taken even where its test score is worse."""
    rates = (0.001, 0.005, 0.01)
    for tokens in SIZES[:5]:
        for rate, loss in zip(rates, (6.0, 5.0, 5.5), strict=True):
            bleu = {0.001: 30.0, 0.005: 1.0, 0.01: 20.0}[rate]
            loss -= tokens / 1e7
            write_run(tmp_path, tokens, 1_000, rate, 0, cross_entropy=loss, bleu=bleu)
    curves = {curve.metric: curve for curve in curves_of(read_results(harvest(tmp_path)))}
    assert {p.learning_rate for p in curves["bleu"].points} == {0.005}
    assert {p.value for p in curves["bleu"].points} == {1.0}
    assert not any(p.at_edge for p in curves["bleu"].points)
    assert len(rows_of(tmp_path)) == 5 * 3 * 2 * 4


def test_rates_are_compared_over_the_seeds_that_all_were_tried_with(tmp_path):
    """A rate that was tried with one seed is not preferred because that seed is a lucky one."""
    for tokens in SIZES[:5]:
        for seed, luck in enumerate((-0.5, 0.3, 0.2)):
            for rate, loss in ((0.005, 5.0), (0.01, 5.1)):
                if rate == 0.005 or seed == 0:
                    write_run(tmp_path, tokens, 1_000, rate, seed, cross_entropy=loss + luck)
    (curve,) = (
        c for c in curves_of(read_results(harvest(tmp_path))) if c.metric == "cross_entropy"
    )
    assert {(p.learning_rate, p.seed) for p in curve.points} == {(0.005, n) for n in range(3)}


def test_an_edge_is_of_the_rates_tried_at_that_place(tmp_path):
    """Rates of another pool or D_p do not widen the grid of a point."""
    first, second = SIZES[1:3]
    tried = {
        (100, first): (0.001, 0.01), (100, second): (0.01, 0.05),
        (1_000, first): (0.001, 0.01, 0.05), (1_000, second): (0.01, 0.02),
    }  # fmt: skip
    for (pool, tokens), rates in tried.items():
        for rate in rates:
            write_run(tmp_path, tokens, pool, rate, 0, cross_entropy=5.0 + abs(rate - 0.01))
    curves = curves_of(read_results(harvest(tmp_path)))
    edges = {(c.place.pool, p.x): p.at_edge for c in curves for p in c.points}
    assert edges == {place: len(rates) == 2 for place, rates in tried.items()}
    html = report(tmp_path, screen=quiet()).read_text()
    assert "At 3 of 4 points the best learning rate is the smallest or largest" in html
    rates_of_pools = re.findall(r"<td>([\d., ]+)</td></tr>", html)
    assert {"0.001, 0.01, 0.05", "0.001, 0.01, 0.02, 0.05"} <= set(rates_of_pools)


def test_one_rate_is_no_edge(tmp_path):
    """And a study that is still running, of so few sizes, can be reported."""
    write_study(tmp_path, sizes=SIZES[:3], pools=(1_000,), rates=(0.005,))
    curves = curves_of(read_results(harvest(tmp_path)))
    assert curves and not any(p.at_edge for curve in curves for p in curve.points)
    assert "smallest or largest" not in report(tmp_path, screen=quiet()).read_text()


def test_best_step_is_chosen_by_validation(tmp_path):
    folder = write_run(tmp_path, 1_000, 1_000, 0.005, 0, cross_entropy=5.0)
    with open(folder / "metrics.jsonl", "a") as file:
        for split, loss in (("validation", 4.0), ("test", 5.4)):
            line = {"step": 60, "split": split, "task": TASK, "cross_entropy": loss}
            file.write(json.dumps(line) + "\n")
    (curve,) = (
        c for c in curves_of(read_results(harvest(tmp_path))) if c.metric == "cross_entropy"
    )
    assert [(p.step, p.value) for p in curve.points] == [(60, 5.4)]


def test_seeds_are_points_and_the_warning_goes(tmp_path):
    write_study(tmp_path, pools=(1_000,), rates=(0.005,), seeds=(0, 1, 2))
    html = report(tmp_path, screen=quiet()).read_text()
    record = json.loads((tmp_path / "fits.json").read_text())
    assert [len(curve["points"]) for curve in record["curves"]] == [18, 18, 18]
    assert record["curves"][0]["fit"]["noise"]["degrees_of_freedom"] == 15
    assert "One seed" not in html


def test_zero_scores_and_few_sizes_are_reported_not_fitted(tmp_path):
    zeros = {1_000: (0.0,) * 7}
    write_study(tmp_path, sizes=SIZES[:3], pools=(1_000,), rates=(0.005,), bleu=zeros)
    html = report(tmp_path, screen=quiet()).read_text()
    by_metric = {c["metric"]: c for c in json.loads((tmp_path / "fits.json").read_text())["curves"]}
    assert by_metric["bleu"]["fit"] is None
    assert "need values" in by_metric["bleu"]["note"]
    assert by_metric["bleu"]["verdict"]["word"] is None
    assert "2 distinct pretrain_tokens to fit: too few points" in by_metric["cross_entropy"]["note"]
    assert "Not fitted" in html


def test_nothing_to_report(tmp_path):
    with pytest.raises(UserError, match="no study here"):
        harvest(tmp_path)
    write_run(tmp_path, 0, 1_000, 0.005, 0, cross_entropy=1.0, done=False)
    with pytest.raises(UserError, match="no finished finetuning run"):
        harvest(tmp_path)
    assert not (tmp_path / "results.csv").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": 120, "split": "te', r"metrics.jsonl, line 4: not JSON"),
        ("[1, 2]", r"line 4: expected a JSON object"),
        (
            json.dumps({"step": 120, "split": "test", "task": TASK, "cross_entropy": 9.0}),
            r"cross_entropy of test at step 120 is there twice, as 5.03 and 9.0",
        ),
    ],
)
def test_damaged_metrics_are_named(tmp_path, line, message):
    folder = write_run(tmp_path, 1_000, 1_000, 0.005, 0, cross_entropy=5.0)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=message):
        harvest(tmp_path)
    assert not (tmp_path / "results.csv").exists()


def test_missing_field_is_named(tmp_path):
    folder = write_run(tmp_path, 1_000, 1_000, 0.005, 0, cross_entropy=5.0)
    record = json.loads((folder / "run.json").read_text())
    del record["parameters"]
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"run.json: no field 'parameters'"):
        harvest(tmp_path)


def test_rates_without_validation_cannot_be_compared(tmp_path):
    for rate in (0.005, 0.01):
        folder = write_run(tmp_path, 1_000, 1_000, rate, 0, cross_entropy=5.0)
        path = folder / "metrics.jsonl"
        lines = [text for text in path.read_text().splitlines() if '"validation"' not in text]
        path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match="no validation cross-entropy to choose"):
        curves_of(read_results(harvest(tmp_path)))


@pytest.mark.parametrize(
    ("value", "text"),
    [(78_336, "78,336"), (2.5, "2.5"), (1.6e9, "1.6B"), (12_800_000, "12.8M"), (3e14, "300T"),
     (3.54e19, "3.54e+19")],
)  # fmt: skip
def test_size(value, text):
    assert size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(78_336, "78k"), (999_900, "1M"), (1_200_128, "1.2M"), (500, "500"), (3.54e19, "3.5e19")],
)
def test_short_size(value, text):
    assert short_size(value) == text


def test_who_reads_a_study_leaves_it_as_it_is(tmp_path):
    """What `fit`, `advise` and `figures` know of a study is from its runs as they are now."""
    write_study(tmp_path, sizes=SIZES[:3], pools=(1_000,), rates=(0.005,))
    before = sorted(tmp_path.rglob("*"))
    curves, runs = load_curves(tmp_path), runs_of(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    assert curves == load_curves(harvest(tmp_path)) and runs
    assert [run["id"] for run in runs] == [run["id"] for run in read_runs(tmp_path)]
    shutil.rmtree(tmp_path / "runs")
    assert curves == load_curves(tmp_path) and len(runs_of(tmp_path)) == len(runs)
    assert runs_of(tmp_path / "results.csv") == []


def test_log_of_runs(tmp_path):
    write_study(tmp_path, sizes=SIZES[:2], pools=(1_000,), rates=(0.005,))
    reason = f"{tmp_path}/runs/a holds a run (gs://mine/b/c.gin there, runs/here/d.gin now)"
    write_run(tmp_path, 0, 1_000, 0.1, 0, cross_entropy=1.0, done=False, failure=reason)
    text = (harvest(tmp_path).parent / "runs.jsonl").read_text()
    assert str(tmp_path) not in text and "gs://" not in text
    log = [json.loads(line) for line in text.splitlines()]
    assert [line["id"] for line in log] == sorted(line["id"] for line in log)
    assert [(line["done"], line["steps"], line["wall_s"], line["device_s"]) for line in log] == [
        (True, 120, 50.0, 48.0), (True, 120, 50.0, 48.0), (False, 120, 50.0, 48.0),
        (True, 0, 0.0, 0.0),
    ]  # fmt: skip
    assert log[2]["failure"] == "a holds a run (c.gin there, runs/here/d.gin now)"
    assert log[0]["record"]["pretrain_languages"] == {"en": 0.5, "de": 0.5}
    assert [run["id"] for run in read_runs(tmp_path)] == [line["id"] for line in log]


def test_what_bleu_is_made_of_is_tabulated_and_not_fitted(tmp_path):
    folder = write_run(tmp_path, 1_000, 1_000, 0.005, 0, cross_entropy=5.0)
    path = folder / "metrics.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    for line in lines[1:]:
        line |= {f"bleu_precision_{n}": 50.0 / n for n in (1, 2, 3, 4)}
        line |= {"brevity_penalty": 0.9, "brevity_penalty_intl": 0.8}  # the latter has no score
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = read_results(harvest(tmp_path))
    parts = {r["metric"]: r["value"] for r in rows if r["metric"].startswith("bleu_")}
    assert parts == {
        "bleu_brevity_penalty": 0.9, "bleu_precision_1": 50.0, "bleu_precision_2": 25.0,
        "bleu_precision_3": 50 / 3, "bleu_precision_4": 12.5,
    }  # fmt: skip
    assert {c.metric for c in curves_of(rows)} == {"cross_entropy", "bleu", "chrf"}
    assert parts.keys() < {c.metric for c in curves_of(rows, parts=True)}


def test_first_screen_asks_shows_and_answers(study):
    _, html, _ = study
    header = html.split("<main>")[0]
    order = ["How much does more pretraining data buy", 'class="panels', "What it buys", "<nav"]
    places = [header.index(part) for part in order]
    assert places == sorted(places)
    answers = header[places[2] :]
    assert "Pretraining on balanced data (2.4M tokens) changes cross-entropy (nats) by -" in answers
    assert "data: more than 10 times as much in en-de (a pool of 47k tokens)." in answers
    assert "Only one pretraining data set was tried" in answers
    assert "Beyond 2.4M tokens nothing was checked" in answers
    assert header.count('<figure class="panel"') == 4  # two metrics, and again in the other pool
    assert header.count('fill="#fff"') == 2  # what laws predict of the largest size
    assert "chrF (BLEU is noise)" in header and "not pretrained: 6.22" in header


def test_headings_are_in_order(study):
    _, html, _ = study
    levels = [int(level) for level in re.findall(r"<h(\d)", html)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_costs_by_kind_of_run(study):
    _, html, _ = study
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", html.split("What it cost")[1].split("</table>")[0])
    assert cells[:7] == ["pretrain", "1", "1", "0", "0 s", "0 s", "0 s"]
    assert cells[7:11] == ["finetune", "30", "28", "3,600"]
    assert cells[11] == "24.0 min"
