"""What a report says of a study's limits: each sentence where it holds, and nowhere else."""

import json

import pytest

from t5scaling.analysis.conclusions.choice_of_law import law_of_metric
from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.conclusions.limits import limits_of
from t5scaling.analysis.conclusions.shapes import Verdict
from t5scaling.analysis.results.curves import curves_of, read_results
from t5scaling.analysis.results.harvest import harvest, read_runs
from t5scaling.analysis.results.rates import uneven
from tests.analysis_made_up_grid import write_grid


def limits(folder, change=lambda record: None, **grid):
    """Of a made-up study whose records `change` may change."""
    write_grid(folder, pairs=("en-fr",), roles=("balanced", "target only"), **grid)
    for path in folder.glob("runs/**/run.json"):
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))
    rows = read_results(harvest(folder))
    fits = [
        CurveFit(curve, law_of_metric(curve.metric), None, "", Verdict(None, "", 0.0, 0.0))
        for curve in curves_of(rows)
    ]
    return limits_of(read_runs(folder), fits, uneven(rows))


def one_with(text, sentences):
    (found,) = [sentence for sentence in sentences if text in sentence]
    return found


def test_text_that_was_read_again(tmp_path):
    def change(record):
        if record["kind"] == "finetune" and record["pretrain_tokens"] > 2_000_000:
            there = 2_500_000 if record["pretrain_data"].endswith("en50_fr50") else 1_500_000
            # A smaller checkpoint has read less of the text.
            record["pretrain_unique_tokens"] = min(there, record["pretrain_tokens"] - 700_000)

    found = one_with("read the same text more than once", limits(tmp_path, change))
    assert "2,500,000 in techdoc_span_en50_fr50 and 1,500,000 in techdoc_span_fr" in found


def test_a_study_that_read_nothing_twice(tmp_path):
    assert not any("more than once" in sentence for sentence in limits(tmp_path))


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_seeds(tmp_path, seeds):
    said = any("One seed" in sentence for sentence in limits(tmp_path, end_seeds=seeds))
    assert said == (len(seeds) == 1)


def test_size(tmp_path):
    def full(record):
        record["parameters"] = 770_000_000
        if record["kind"] == "finetune":
            record["pretrain_tokens"] *= 1000

    assert "smoke-sized study: 2,891,136 parameters" in one_with("smoke", limits(tmp_path / "a"))
    assert not any("smoke" in sentence for sentence in limits(tmp_path / "b", full))


def test_few_sizes(tmp_path):
    few = limits(tmp_path / "a", sizes=(0, 100_000, 200_000, 400_000, 800_000))
    assert "4 pretraining sizes are few" in one_with("are few", few)
    assert not any("are few" in sentence for sentence in limits(tmp_path / "b"))


@pytest.mark.parametrize("pretrained", [False, True])
def test_rates_of_one_side_alone(tmp_path, pretrained):
    def change(record):
        if record["kind"] == "finetune" and (record["pretrain_tokens"] > 0) == pretrained:
            record["learning_rate"] = 0.015

    assert not any("unequal grids" in text for text in limits(tmp_path / "plain"))
    compared = 0.015 if pretrained else 0.005
    said = [text for text in limits(tmp_path / "changed", change) if "unequal grids" in text]
    assert said and all(
        f"compared at {compared:g}. {compared:g} was not tried without pretraining. So what "
        "pretraining gains there is compared at unequal grids." in text
        for text in said
    )
