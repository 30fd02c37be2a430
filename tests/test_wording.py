"""Numbers as text: what a reader sees of them."""

import math

import pytest

from t5scaling.analysis.wording import number, with_interval


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((0.1667, -1.0234, 1.3512), "0.17 (-1.02 to 1.35)"),
        ((0.7823, 0.7011, 0.8644), "0.782 (0.701 to 0.864)"),
        ((-0.000452, -0.4489, 0.4481), "0 (-0.449 to 0.448)"),
        ((0.0, -0.9021, 0.0), "0 (-0.902 to 0)"),
        ((1.361, 1.338, 31.41), "1.4 (1.3 to 31.4)"),
        ((1234.4, 999.6, 15678.0), "1,234 (1,000 to 15,678)"),
        ((0.0001234, 0.00002, 0.00045), "0.000123 (0.000020 to 0.000450)"),
        ((1.5, -math.inf, 2.5), "1.50 (-overflow to 2.50)"),
        ((0.5, None, None), "0.500"),
        ((0.0, 0.0, 0.0), "0 (0 to 0)"),
        ((math.nan, 0.1, 0.2), "–"),
        ((None, None, None), "–"),
    ],
)
def test_a_value_has_the_decimals_of_its_interval(numbers, text):
    assert with_interval(*numbers) == text


def test_changes_have_signs_and_values_have_units():
    assert with_interval(0.25, -0.31, 0.81, signed=True) == "+0.250 (-0.310 to +0.810)"
    assert with_interval(0.0001, -0.31, 0.81, signed=True) == "0 (-0.310 to +0.810)"
    assert with_interval(0.17, -1.0, 1.3, unit="BLEU") == "0.17 BLEU (-1.00 to 1.30)"


def test_numbers_have_four_digits():
    found = [number(v) for v in (12345.6, 0.00123456, 3e-5, 2.5e9, 0.0, 1e-120, math.inf)]
    assert found == ["12,350", "0.001235", "3.00e-05", "2.50e+09", "0", "≈ 0", "overflow"]
