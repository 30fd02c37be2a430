"""A formula of one's own as a law, such as "E + A / D**alpha".

The text is read by Python's own parser, and only arithmetic is let through: numbers, names,
+ - * / ** (or ^), parentheses, and log, exp and sqrt of one argument; nothing is ever executed.
Names that are columns of x are sizes; all others are coefficients, positive unless `bounds` say
otherwise. A coefficient that may not be negative is fitted as its logarithm, any other as its
inverse hyperbolic sine: steps are then relative ones, whatever its unit.

Derivatives are exact: each operation hands on those of its arguments with its value (forward mode).
Starts come from a seeded Latin hypercube over the logs of the coefficients; those in which the
formula is linear are then solved for instead, which is what makes it work for any unit.
"""

import ast
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from t5scaling.analysis.laws.base import Coefficient, Frame, Law
from t5scaling.errors import UserError

LONGEST = 400  # characters of a formula
FUNCTIONS = ("log", "exp", "sqrt")
Bounds = Mapping[str, tuple[float, float]]  # of coefficients: low and high, inf for none
# A tree: ("number", value), ("size", row), ("coefficient", place), or an operation and its
# arguments: "+", "-", "*", "/", "**", "negative", or one of FUNCTIONS.
Tree = tuple
_OPERATIONS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}
_FARTHEST = 400.0  # of a coefficient's logarithm: e^400 is 1e173
_EXPONENTS = (math.log(0.02), math.log(5.0))  # where exponents of scaling laws lie
_SCREENED = 64  # points at most that starts are judged by
_KEPT = 24  # starts
_SAME = 1e-9  # smallest singular value over the largest; below it coefficients are not determined


def is_formula(name: str) -> bool:
    """Whether a law's name is meant as a formula: it computes something."""
    return re.search(r"[+*/^(=\s]", name) is not None


def parsed_bounds(text: str | None) -> dict[str, tuple[float, float]]:
    """ "alpha=0:2,E=0:" as name -> (low, high); an end that is left out is open.

    Raises:
      UserError: what is not written so.
    """
    bounds: dict[str, tuple[float, float]] = {}
    for part in filter(None, (part.strip() for part in (text or "").split(","))):
        name, equals, ends = (piece.strip() for piece in part.partition("="))
        low, colon, high = (piece.strip() for piece in ends.partition(":"))
        try:
            found = float(low or "-inf"), float(high or "inf")
        except ValueError:
            found = math.nan, math.nan
        if not (name.isidentifier() and equals and colon) or not found[0] < found[1]:
            raise UserError(
                f"bounds {part!r}: expected NAME=LOW:HIGH with numbers, the lower first, one of "
                "which may be left out, such as alpha=0:2 or E=0:"
            )
        if name in bounds:
            raise UserError(f"bounds of {name} are given twice")
        bounds[name] = found
    return bounds


class Formula(Law):
    """A law from its text.

    theta: of each coefficient its logarithm, or its inverse hyperbolic sine if it may be negative.
    """

    title = "given formula"

    def __init__(
        self, text: str, sizes: Sequence[str] = ("x",), bounds: Bounds | None = None,
        direction: int = -1,
    ):  # fmt: skip
        """Of the formula `text`.

        Args:
          sizes: names of the columns of x.
          bounds: of coefficients.
          direction: +1 if the values rise with the (first) size, -1 if they fall.

        Raises:
          UserError: what is no such formula, with the place; a size that does not occur in it;
            bounds of a name that is none of its coefficients.
        """
        self.name = self.formula = text.strip()
        self.sizes = tuple(sizes)
        self.direction = direction
        self.huber_delta = 1e-3 if direction < 0 else 0.1
        reader = _Reader(self.name, self.sizes)
        self.tree, self.names = reader.tree, tuple(reader.names)
        bounds = bounds or {}
        for name in bounds:
            if name not in self.names:
                raise UserError(
                    f"bounds of {name}: the formula {self.name} has no such coefficient, but "
                    f"{', '.join(self.names)}"
                )
        self.limits = [bounds.get(name, (0.0, math.inf)) for name in self.names]
        self.logs = np.array([low >= 0 for low, _ in self.limits])
        self.theta_names = tuple(
            f"log {name}" if log else name for name, log in zip(self.names, self.logs, strict=True)
        )
        self.coefficient_table = tuple(
            Coefficient(name, "coefficient of the formula", "") for name in self.names
        )
        self.at_bound = {
            (theta, side): f"{name} is at its bound of {bound:g}"
            for theta, name, limits in zip(self.theta_names, self.names, self.limits, strict=True)
            for side, bound in zip(("low", "high"), limits, strict=True)
            if math.isfinite(bound)
        }
        self._linear = _linear_in(self.tree, len(self.names))
        self._exponents = _only_exponents(self.tree)

    # --- values and derivatives ---------------------------------------------------------------

    def _natural(self, theta: np.ndarray) -> np.ndarray:
        """Coefficients of theta, (..., P) both."""
        near = np.clip(theta, -700, 700)
        return np.where(self.logs, np.exp(near), np.sinh(near))

    def _sizes_of(self, log_x: np.ndarray) -> list[np.ndarray]:
        return list(np.exp(np.atleast_2d(log_x)))

    def log_value(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        natural = self._natural(theta)
        with np.errstate(all="ignore"):
            value, _ = _evaluate(self.tree, self._sizes_of(log_x), natural, derive=False)
            shape = (*theta.shape[:-1], np.shape(log_x)[-1])
            return np.log(np.broadcast_to(value, shape))

    def jacobian(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        natural, near = self._natural(theta), np.clip(theta, -700, 700)
        with np.errstate(all="ignore"):
            value, slopes = _evaluate(self.tree, self._sizes_of(log_x), natural, derive=True)
            by_theta = np.where(self.logs, natural, np.cosh(near))
            shape = (*theta.shape[:-1], np.shape(log_x)[-1])
            columns = [
                slopes.get(i, np.zeros(())) * by_theta[..., i, None] / value
                for i in range(len(self.names))
            ]
            return np.stack([np.broadcast_to(column, shape) for column in columns], axis=-1)

    def bounds(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        ends = np.array(self.limits).T
        with np.errstate(divide="ignore"):
            inner = np.where(self.logs, np.log(np.where(self.logs, ends, 1.0)), np.arcsinh(ends))
        low, high = np.clip(inner, -_FARTHEST, _FARTHEST)
        return low, high

    def coefficients(self, theta: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        natural = self._natural(theta)
        return {name: natural[..., i] for i, name in enumerate(self.names)}

    def published(self, x: np.ndarray, c: Mapping[str, np.ndarray]) -> np.ndarray:
        coefficients = np.array([c[name] for name in self.names], float)
        value, _ = _evaluate(self.tree, list(np.atleast_2d(x)), coefficients, derive=False)
        return np.broadcast_to(value, np.shape(x)[-1:])

    # --- starts -------------------------------------------------------------------------------

    def starts(self, log_x: np.ndarray, log_y: np.ndarray, frame: Frame) -> np.ndarray:
        """The best of many draws, and others spread over the better quarter of them.

        Raises UserError where the formula is positive nowhere, or its points do not
        determine its coefficients.
        """
        few = np.unique(np.linspace(0, len(log_y) - 1, _SCREENED).round().astype(int))
        order = np.lexsort(np.atleast_2d(log_x))[few]
        sizes, y = self._sizes_of(log_x[..., order]), np.exp(log_y[order])
        free = [i for i in range(len(self.names)) if i not in self._linear]
        draws = self._drawn(len(self.names), min(4096, 64 * 4 ** len(free)), sizes, y)
        if self._linear:
            draws = self._solved(draws, sizes, y)
        low, high = self.bounds(frame)
        theta = np.where(self.logs, np.log(np.maximum(draws, 1e-300)), np.arcsinh(draws))
        theta = np.clip(theta, low, high)
        off = np.abs(log_y[order] - self.log_value(theta, log_x[..., order], frame)).sum(-1)
        ranked = np.argsort(np.where(np.isfinite(off), off, np.inf), kind="stable")
        usable = int(np.isfinite(off).sum())
        if not usable:
            raise UserError(
                f"the formula {self.name} gives no positive values at these points, whatever its "
                "coefficients within their bounds"
            )
        better = ranked[: max(usable // 4, min(usable, _KEPT))]
        spread = np.linspace(0, len(better) - 1, _KEPT // 2).round().astype(int)
        kept = theta[better[np.unique(np.concatenate([np.arange(_KEPT // 2), spread]) % usable)]]
        self._check_determined(kept, log_x, frame)
        return kept

    def _drawn(self, count: int, draws: int, sizes, y) -> np.ndarray:
        """Coefficients over a Latin hypercube, (draws, P): exponents around 1; others around 1,
        or on the scale of a size, of its inverse or of the values."""
        rng = np.random.default_rng(0)
        strata = np.array([rng.permutation(draws) for _ in range(count)]).T
        places = (strata + rng.random(strata.shape)) / draws
        scales = [_EXPONENTS, *([_EXPONENTS] * len(sizes))]
        for row in sizes:
            ends = math.log(row.min()) - 2.3, math.log(row.max()) + 2.3
            scales += [ends, (-ends[1], -ends[0])]
        scales.append((math.log(y.min()) - 2.3, math.log(y.max()) + 2.3))
        found = np.empty(places.shape)
        for i, (low, high) in enumerate(self.limits):
            place = places[:, i]
            if math.isfinite(low) and math.isfinite(high) and (low < 0 or high <= 100 * low):
                found[:, i] = low + place * (high - low)
                continue
            ranges = np.array([_EXPONENTS] if i in self._exponents else scales)
            which = np.minimum((place * len(ranges)).astype(int), len(ranges) - 1)
            inside = place * len(ranges) - which
            size = np.exp(ranges[which, 0] + inside * (ranges[which, 1] - ranges[which, 0]))
            sign = np.where(rng.random(draws) < 0.5, -1.0, 1.0) if low < 0 else 1.0
            value = sign * size
            outside = (value < low) | (value > high)  # back within a bound, on the same scale
            if math.isfinite(high) and high > 0 and low >= 0:
                again = low + (high - low) * (0.02 + 0.96 * rng.random(draws))
            else:
                again = (low if math.isfinite(low) else high) + (size if math.isfinite(low) else
                                                                 -size)  # fmt: skip
            found[:, i] = np.where(outside, again, value)
        return found

    def _solved(self, draws: np.ndarray, sizes, y: np.ndarray) -> np.ndarray:
        """With the linear coefficients that meet the points best, by least squares of relative
        errors, (draws, P). One that would have to lie beyond a bound is held near it, and the
        others solved for again."""
        linear = list(self._linear)

        def at(values):
            natural = draws.copy()
            natural[:, linear] = values
            with np.errstate(all="ignore"):
                value, _ = _evaluate(self.tree, sizes, natural, derive=False)
            return np.broadcast_to(value, (len(draws), len(y))) / y

        rest = at(np.zeros(len(linear)))
        with np.errstate(invalid="ignore"):  # where both are infinite
            columns = np.stack([at(unit) - rest for unit in np.eye(len(linear))], axis=-1)
        usable = np.isfinite(rest).all(-1) & np.isfinite(columns).all((1, 2))
        rest, columns = rest[usable], columns[usable]
        # A column of its own size each: units must not matter.
        norms = np.sqrt((columns**2).sum(1)) + 1e-300
        columns = columns / norms[:, None, :]
        low, high = np.array([self.limits[i] for i in linear]).T
        low, high = low * norms, high * norms
        # Held near a bound: not on it, where the logarithm of 0 would be.
        least, most = (np.where(np.isfinite(end), end, 0.0) for end in (low, high))
        margin = 1e-3 * np.sqrt(len(y))
        held = np.zeros(norms.shape, bool)
        values = np.zeros(norms.shape)
        for _ in range(len(linear) + 1):
            goal = 1 - rest - (columns * np.where(held, values, 0.0)[:, None, :]).sum(-1)
            open_columns = columns * ~held[:, None, :]
            normal = open_columns.transpose(0, 2, 1) @ open_columns
            normal += (1e-12 + held[:, :, None]) * np.eye(len(linear))
            solved = np.linalg.solve(normal, (open_columns * goal[:, :, None]).sum(1)[..., None])
            values = np.where(held, values, solved[..., 0])
            below, above = ~held & (values <= low), ~held & (values >= high)
            values = np.where(below, np.minimum(least + margin, high), values)
            values = np.where(above, np.maximum(most - margin, low), values)
            if not (below | above).any():
                break
            held |= below | above
        found = draws.copy()
        found[np.flatnonzero(usable)[:, None], linear] = values / norms
        return found[usable] if usable.any() else draws

    def _check_determined(self, thetas: np.ndarray, log_x: np.ndarray, frame) -> None:
        """Raises UserError if at no start the points, however exact, would determine all."""
        slopes = np.nan_to_num(self.jacobian(thetas, log_x, frame), posinf=0.0, neginf=0.0)
        norms = np.sqrt((slopes**2).sum(1, keepdims=True))
        _, singular, rows = np.linalg.svd(slopes / np.maximum(norms, 1e-300), full_matrices=True)
        singular = np.pad(singular, ((0, 0), (0, rows.shape[1] - singular.shape[1])))
        clearest = int(singular[:, -1].argmax())
        if singular[clearest, -1] > _SAME * singular[clearest, 0]:
            return
        weights = np.abs(rows[clearest, -1])
        names = [self.names[i] for i in np.flatnonzero(weights > 0.05 * weights.max())]
        which = " and ".join(names)
        raise UserError(
            f"the formula {self.name}: these points cannot determine {which}"
            + (
                ", because other values of them give the same curve; leave one of them out, or "
                "measure at more sizes"
                if len(names) > 1
                else ", because it makes no difference to them; leave it out"
            )
        )


# --- reading ------------------------------------------------------------------------------------


class _Reader:
    """From text to a tree. names: of the coefficients, in their order."""

    def __init__(self, text: str, sizes: Sequence[str]):
        self.text, self.sizes = text, sizes
        self.names: list[str] = []
        if len(text) > LONGEST:
            raise UserError(f"the formula has {len(text)} characters, at most {LONGEST} are read")
        if not text.isprintable():
            raise UserError(f"the formula {text!r} holds characters that cannot be printed")
        # ^ is how papers write powers; in Python it would bind as no power does.
        self.source = text.replace("^", "**")
        try:
            body = ast.parse(self.source, mode="eval").body
        except SyntaxError as error:
            raise self._error((error.offset or 1) - 1, self._syntax(error)) from None
        except (ValueError, MemoryError, RecursionError):
            raise UserError(f"the formula {text!r} cannot be read: it is nested too deep") from None
        try:
            self.tree = self._tree(body)
        except RecursionError:
            raise UserError(f"the formula {text!r} is nested too deep") from None
        absent = [size for size in sizes if not self._uses(size, body)]
        if absent:
            column = "column" if len(absent) == 1 else "columns"
            unnamed = [size for size in absent if not size.isidentifier()]
            raise UserError(
                f"the formula {text} does not hold {' and '.join(absent)}, the {column} of x; "
                "write "
                + (
                    f"the column {unnamed[0]!r} as one word, in the table and in the formula"
                    if unnamed
                    else "the sizes by the names of their columns"
                )
            )
        if not self.names:
            raise UserError(f"the formula {text} has no coefficient to fit")

    def _syntax(self, error: SyntaxError) -> str:
        if re.search(r"[^=!<>]=[^=]", f" {self.source} "):
            return "expected a formula alone, without = and what is before it"
        return "this is not arithmetic as Python reads it" + (
            f" ({error.msg})" if error.msg and error.msg != "invalid syntax" else ""
        )

    @staticmethod
    def _uses(size: str, body: ast.AST) -> bool:
        return any(isinstance(node, ast.Name) and node.id == size for node in ast.walk(body))

    def _error(self, offset: int, what: str) -> UserError:
        """offset: in `source`, in characters."""
        before = self.source[: max(offset, 0)]
        # Each ^ before the place has become two characters.
        at, seen = 0, 0
        while at < len(self.text) and seen < len(before):
            seen += 2 if self.text[at] == "^" else 1
            at += 1
        where = f"at character {at + 1}" if at < len(self.text) else "at its end"
        rest = self.text[at : at + 20]
        return UserError(f"the formula {self.text!r}, {where}{f' ({rest!r})' * bool(rest)}: {what}")

    def _tree(self, node: ast.expr) -> Tree:
        def wrong(what: str) -> UserError:
            # The parser counts bytes.
            return self._error(len(self.source.encode()[: node.col_offset].decode()), what)

        match node:
            case ast.Constant(value=bool() | complex() | str() | bytes() | None):
                raise wrong("expected a number or a name")
            case ast.Constant(value=int() | float() as value):
                number = float(value) if abs(value) <= 1e300 else math.inf
                if not math.isfinite(number):
                    raise wrong("this number is too large")
                return "number", number
            case ast.Name(id=name):
                if name in self.sizes:
                    return "size", list(self.sizes).index(name)
                if name in FUNCTIONS:
                    raise wrong(f"{name} is a function; write {name}(...)")
                if name not in self.names:
                    self.names.append(name)
                return "coefficient", self.names.index(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return "negative", self._tree(operand)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self._tree(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
                return _OPERATIONS[type(op)], self._tree(left), self._tree(right)
            case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if (
                name in FUNCTIONS and not isinstance(argument, ast.Starred)
            ):
                return name, self._tree(argument)
            case ast.Call():
                raise wrong(f"functions are {', '.join(FUNCTIONS)}, of one argument each")
            case _:
                raise wrong(
                    "a formula has numbers, names, + - * / **, parentheses and "
                    f"{', '.join(FUNCTIONS)}, and nothing else"
                )


# --- computing with trees -----------------------------------------------------------------------


def _evaluate(
    tree: Tree, sizes: Sequence[np.ndarray], coefficients: np.ndarray, *, derive: bool
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Value, and its derivatives by those coefficients that it depends on, all shaped as
    (..., N) or so that they broadcast to it.

    Args:
      sizes: (N,) each. coefficients: (..., P).
    """

    def walk(node: Tree) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        kind = node[0]
        if kind == "number":
            return np.array([node[1]]), {}
        if kind == "size":
            return sizes[node[1]], {}
        if kind == "coefficient":
            value = coefficients[..., node[1], None]
            return value, {node[1]: np.ones_like(value)} if derive else {}
        a, of_a = walk(node[1])
        if kind == "negative":
            return -a, {i: -slope for i, slope in of_a.items()}
        if kind in FUNCTIONS:
            value = {"log": np.log, "exp": np.exp, "sqrt": np.sqrt}[kind](a)
            if not of_a:
                return value, {}
            by_a = {"log": lambda: 1 / a, "exp": lambda: value, "sqrt": lambda: 0.5 / value}[kind]()
            return value, {i: by_a * slope for i, slope in of_a.items()}
        b, of_b = walk(node[2])
        if kind == "+":
            return a + b, _sum((1.0, of_a), (1.0, of_b))
        if kind == "-":
            return a - b, _sum((1.0, of_a), (-1.0, of_b))
        if kind == "*":
            return a * b, _sum((b, of_a), (a, of_b))
        if kind == "/":
            value = a / b
            return value, _sum((1 / b, of_a), (-value / b, of_b))
        value = np.power(a, b)
        # Of a constant power the derivative exists at a = 0 too.
        by_a = b * value / a if of_b else b * np.power(a, b - 1) if of_a else 0.0
        by_b = value * np.log(a) if of_b else 0.0  # only there: a may be negative elsewhere
        return value, _sum((by_a, of_a), (by_b, of_b))

    return walk(tree)


def _sum(*terms: tuple[np.ndarray | float, dict[int, np.ndarray]]) -> dict[int, np.ndarray]:
    """Derivatives times their factors, added up."""
    found: dict[int, np.ndarray] = {}
    for factor, slopes in terms:
        for i, slope in slopes.items():
            found[i] = found[i] + factor * slope if i in found else factor * slope
    return found


def _linear_in(tree: Tree, count: int) -> tuple[int, ...]:
    """Coefficients in which, all together, the formula is linear (plus a rest)."""
    chosen: tuple[int, ...] = ()
    for i in range(count):
        if _degree(tree, (*chosen, i)) is not None:
            chosen = (*chosen, i)
    return chosen


def _degree(tree: Tree, members: tuple[int, ...]) -> int | None:
    """0 if the tree does not hold these coefficients, 1 if it is linear in them, else None."""
    kind = tree[0]
    if kind in ("number", "size"):
        return 0
    if kind == "coefficient":
        return int(tree[1] in members)
    degrees = [_degree(branch, members) for branch in tree[1:]]
    known = [degree for degree in degrees if degree is not None]
    if len(known) < len(degrees):
        return None
    if kind in ("+", "-", "negative"):
        return max(known)
    if kind == "*":
        return sum(known) if sum(known) <= 1 else None
    if kind == "/":
        return known[0] if known[1] == 0 else None
    return 0 if not any(known) else None


def _only_exponents(tree: Tree) -> set[int]:
    """Coefficients that stand in exponents of ** and nowhere else."""
    inside: set[int] = set()
    outside: set[int] = set()

    def walk(node: Tree, exponent: bool) -> None:
        if node[0] == "coefficient":
            (inside if exponent else outside).add(node[1])
        elif node[0] not in ("number", "size"):
            for i, branch in enumerate(node[1:]):
                walk(branch, exponent or (node[0] == "**" and i == 1))

    walk(tree, False)
    return inside - outside
