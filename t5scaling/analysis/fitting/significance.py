"""What counts as sure: the level of all intervals, the level of all tests, Student's half-width.

Every interval holds LEVEL of its distribution, half of the rest on either side; every test rejects
at SIGNIFICANCE. scipy's distributions are imported where they are used: they cost a second.
"""

LEVEL = 0.90
SIGNIFICANCE = 0.05
TAILS = (1 - LEVEL) / 2, (1 + LEVEL) / 2  # the quantiles at the ends of an interval


def student_half_width(standard_error: float, degrees_of_freedom: float) -> float:
    """Half of the interval of a mean whose standard error is known with so many degrees of
    freedom, at least one; in the unit of the error."""
    return student_quantile(degrees_of_freedom) * standard_error


def student_quantile(degrees_of_freedom: float) -> float:
    """Student's quantile at the upper end of an interval."""
    from scipy.stats import t

    return float(t.ppf(TAILS[1], max(degrees_of_freedom, 1)))
