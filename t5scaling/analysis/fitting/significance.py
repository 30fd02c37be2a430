"""What counts as sure: the level of all intervals, the level of all tests, Student's half-width.

Every interval holds LEVEL of its distribution, half of the rest on either side; every test rejects
at SIGNIFICANCE. Quantiles and tails come from scipy.special, imported where they are used: the
distributions of scipy.stats would cost a second of every start.
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
    from scipy.special import stdtrit

    return float(stdtrit(max(degrees_of_freedom, 1), TAILS[1]))


def f_tail(ratio: float, degrees: float, degrees_below: float) -> float:
    """The probability that a ratio of two variances with so many degrees of freedom, above and
    below the line, is larger."""
    from scipy.special import fdtrc

    return float(fdtrc(degrees, degrees_below, ratio))
