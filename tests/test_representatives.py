"""What represents a study: one model, one score of a task; and places, by which curves join."""

import pytest

from t5scaling.analysis.conclusions.choice_of_law import law_of_metric
from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.conclusions.representatives import models_by_curves, speaking_score
from t5scaling.analysis.conclusions.shapes import Shape, Verdict
from t5scaling.analysis.metrics import better, metric_name, resolution_of
from t5scaling.analysis.results.curves import Curve, Point
from t5scaling.analysis.results.places import Place


def fit_of(metric, value, place=None):
    curve = Curve(place or Place("tiny", "en", "wmt", 100), metric, "D_p", (Point(1e6, value),))
    return CurveFit(curve, law_of_metric(metric), None, "", Verdict(None, "made up", 0.0, 0.0))


@pytest.mark.parametrize(
    ("measured", "name", "decides"),
    [
        ({"cross_entropy": 5, "bleu": 12, "chrf": 30}, "bleu", True),
        ({"cross_entropy": 5, "bleu": 0.3, "chrf": 9}, "chrf", False),  # shown, decides nothing
        ({"bleu": 0.3}, "bleu", False),
        ({"cross_entropy": 5, "chrf": 9, "accuracy": 40}, "chrf", True),
        ({"cross_entropy": 5, "rouge1": 9, "accuracy": 40}, "accuracy", True),
        ({"bleu_intl": 0.3}, "bleu_intl", False),
        ({"cross_entropy": 5}, None, False),
    ],
)
def test_the_score_that_speaks_for_a_task(measured, name, decides):
    score = speaking_score([fit_of(metric, value) for metric, value in measured.items()])
    assert (score.name, score.decides) == (name, decides)


def test_the_main_model_has_the_most_curves():
    models = ["small", "large", "large", "base", "small"]
    fits = [fit_of("bleu", 9, Place(model, str(i), "wmt", 1)) for i, model in enumerate(models)]
    assert models_by_curves(fits) == ["large", "small", "base"]


def test_places():
    of_study, of_table = Place("tiny", "en", "wmt", 100), Place(columns=(("data", "both"),))
    assert dict(of_study.key) == {
        "model": "tiny", "pretrain_data": "en", "task": "wmt", "finetune_examples": 100,
    }  # fmt: skip
    assert (of_study.data_name, of_table.data_name, Place().data_name) == ("en", "both", None)
    assert of_study.beside_data == Place("tiny", None, "wmt", 100)
    assert of_study.beside_pool == Place("tiny", "en", "wmt")
    assert of_table.beside_data == Place() and of_table.label == "both" and Place().label == ""
    two = Place(columns=(("data", "both"), ("size", "1")))
    assert two.data_name is None and two.beside_data == two


@pytest.mark.parametrize("shape", Shape)
def test_shapes(shape):
    assert not (shape.improves and shape.has_no_law) and shape.meaning
    assert shape.has_no_law or not shape.breaks
    assert str(shape) == shape.value == shape.name.lower()


def test_metrics():
    assert (metric_name("bleu"), metric_name("rouge1")) == ("BLEU", "rouge1")
    assert (better("cross_entropy"), better("rouge1")) == (-1, 1)
    assert (resolution_of("bleu_intl"), resolution_of("rouge1")) == (0.5, 0)
