"""The verbs of somebody who has measurements: fit, predict, advise and figures."""

from t5scaling.verb import Argument, Verb

TABLE = Argument(
    "file",
    "a table (CSV, TSV, JSON, JSON lines, parquet or xlsx, packed or not; - for standard input), "
    "a study's directory, or a directory of T5X's runs",
)
COLUMNS = (
    Argument("--x", "column of data sizes, or two separated by a comma (default: the first)"),
    Argument("--y", "column of scores or losses; for runs, the name of a metric"),
    Argument("--sources", "in place of --x: tokens of each language, the target's column first"),
    Argument("--unique", "columns of unique tokens of each of --sources, where some are repeated"),
    Argument(
        "--group", "columns, separated by commas; each of their values gets a curve", default=""
    ),
    Argument("--error", "column of standard errors of y, by which points are weighted"),
    Argument("--seed", "column of seeds"),
    Argument("--split", "column that says which rows are fitted (train) and held out (test)"),
    Argument("--decimal", "the decimal mark, . or , (default: as the cells show)", metavar="MARK"),
)
BOUNDS = Argument(
    "--bounds",
    "of the coefficients of a formula, which are positive otherwise: alpha=0:2,E=0:",
    metavar="NAME=LOW:HIGH,...",
)


def _columns(settings):
    """Takes those arguments out that name columns."""
    from t5scaling.analysis.results import load

    return load.named(**{argument.name: settings.pop(argument.name) for argument in COLUMNS})


def _given(flag: str, text: str | None) -> float | None:
    """The size, None where the flag is not given."""
    return None if text is None else _size(flag, text)


def _size(flag: str, text: str) -> float:
    """A size as people write it: 1.4e12, 70B."""
    from t5scaling.analysis.results import cells
    from t5scaling.errors import UserError

    value = cells.size_of(text)
    if value is None:
        raise UserError(f"{flag}={text}: expected a positive size such as 1e9 or 70B")
    return value


def _fit(file, fit_below, **settings):
    from t5scaling.analysis import fit_table

    below = _given("--fit_below", fit_below)
    fit_table.fit_table(file, _columns(settings), fit_below=below, **settings)


def _advise(file, at, law, bounds, compute, **settings):
    from t5scaling.analysis import advise, predict, two_sizes
    from t5scaling.errors import UserError

    columns, compute = _columns(settings), _given("--compute", compute)
    place = predict.place_of(at) if at else None
    if len(columns.x) == 2:
        for name in ("cost_per_unit", "cost_per_run", "budget"):
            if settings[name] is not None:
                raise UserError(f"--{name} is for tables of one size; of two a budget is --compute")
        two_sizes.advise(
            file, columns, at=place, compute=compute, law=law, bounds=bounds,
            as_json=settings["as_json"],
        )  # fmt: skip
        return
    if law or bounds or compute:
        raise UserError(
            "--law, --bounds and --compute are for two columns of x; of one size advise weighs "
            "every family"
        )
    if place and len(place) != 1:
        raise UserError(f"--at={at}: expected one size")
    advise.advise(file, columns, at=place[0] if place else None, **settings)


def _predict(file, compute, **settings):
    from t5scaling.analysis import predict

    budgets = [_size("--compute", text) for text in compute]
    predict.predict(file, _columns(settings), compute=budgets, **settings)


def _figures(file, at, **settings):
    from t5scaling.analysis import draw

    draw.draw(file, _columns(settings), at=_given("--at", at), **settings)


LAW_VERBS = {
    "fit": Verb(
        "Fit scaling laws to a table or to a directory of runs, ours or T5X's: coefficients with "
        "intervals, held-out errors, verdicts.",
        "results.csv --x=tokens --y=loss --law=power",
        _fit,
        (
            TABLE,
            *COLUMNS,
            Argument(
                "--law",
                "log, ceiling or hill for scores; power, m1, m3, onset, m4 or bnsl for losses; "
                "gordon or gadre where x is a loss; lin where it is a checkpoint's finetuning "
                "data; zhang, zhang-additive, barnett, chinchilla, kaplan, hernandez, muennighoff, "
                "ghorbani or clark where x is two columns; sources, sources-pair, "
                "sources-repeated, ye or shukor of --sources; all: every one for such values, "
                "compared by their errors on sizes not fitted (default: of a study log and power; "
                "of a table what predicts unseen sizes of its curves best; of two columns zhang, "
                "of --sources sources); or a formula of your own in the columns of x, such as "
                "'E + A/tokens**alpha'",
            ),
            BOUNDS,
            Argument(
                "--protocol",
                "rollout (fit all points, and check by predicting each size from those before "
                "it), paper (fit the 4 smallest sizes, hold out the rest) or last (hold out the "
                "largest) (default: rollout)",
                default="rollout",
            ),
            Argument("--hold_out", "hold out this many of the largest x instead", type=int),
            Argument("--fit_below", "hold out x from this size on instead"),
            Argument(
                "--interval",
                "how intervals are made: noise (parametric bootstrap), points or seeds "
                "(resampled) or profile (likelihood) (default: noise)",
                default="noise",
            ),
            Argument(
                "--residual",
                "what is fitted: log, value, or reducible, the log of what lies above the floor "
                "(default: log)",
                default="log",
            ),
            Argument("--delta", "threshold of Huber's loss; inf for least squares", type=float),
            Argument(
                "--worse_counts",
                "weight of points worse than the law, below 1 where runs may be under-tuned "
                "(default: 1)",
                type=float,
                default=1.0,
            ),
            Argument(
                "--all",
                "every curve in full, where there are many",
                dest="every",
                action="store_true",
            ),
            Argument(
                "--group_by",
                "columns of --group, by commas: a line for each of their values, with medians",
                default="",
            ),
            Argument("--json", "JSON instead of tables", dest="as_json", action="store_true"),
        ),
    ),
    "predict": Verb(
        "Say what a table's law, fitted to all its points, expects at sizes of your own, with an "
        "interval and the distance from the data; and how a budget of compute is best split "
        "between a model's size and its data.",
        "results.csv --x=parameters,tokens --y=loss --law=chinchilla --at=70B,1.4T "
        "--compute=5.76e23",
        _predict,
        (
            TABLE,
            *COLUMNS,
            Argument(
                "--at",
                "a size such as 1e9 or 70B, or two by a comma of a law of two; may be repeated",
                action="append",
                default=[],
                metavar="X[,X2]",
            ),
            Argument(
                "--compute",
                "a budget of floating-point operations; may be repeated",
                action="append",
                default=[],
                metavar="C",
            ),
            Argument(
                "--flops",
                "operations per parameter and token, C = FLOPS * x * x2 (default: 6)",
                type=float,
                default=6.0,
            ),
            Argument(
                "--law",
                "as for fit, one of them or a formula (default: as fit chooses; with a budget "
                "chinchilla)",
            ),
            BOUNDS,
            Argument(
                "--interval", "noise, points, seeds or profile (default: noise)", default="noise"
            ),
            Argument("--delta", "Huber's threshold; inf: squares", type=float),
            Argument("--json", "JSON instead of tables", dest="as_json", action="store_true"),
        ),
    ),
    "advise": Verb(
        "Advise what to pay for next: is pretraining worth it, do the "
        "data suffice, what score at a larger size, which data, which run next.",
        "runs/quick --at=1e9",
        _advise,
        (
            TABLE,
            *COLUMNS,
            Argument(
                "--at",
                "the size to forecast, such as 1e9 or 70B, two separated by a comma where x is two "
                "columns (default: 4x largest)",
                metavar="X[,X2]",
            ),
            Argument(
                "--law",
                "where x is two columns: a law of two sizes, or a formula (default: zhang; with "
                "--compute chinchilla)",
            ),
            BOUNDS,
            Argument(
                "--compute",
                "where x is a model's size and its data: operations to split between them",
                metavar="C",
            ),
            Argument(
                "--cost_per_unit",
                "device-hours of pretraining per unit of x (default: as the study measured)",
                type=float,
            ),
            Argument(
                "--cost_per_run", "device-hours of one finetuning (default: same)", type=float
            ),
            Argument("--budget", "device-hours to spend (default: one run at --at)", type=float),
            Argument(
                "--all",
                "everything on every curve, where there are many",
                dest="every",
                action="store_true",
            ),
            Argument("--json", "JSON instead of text", dest="as_json", action="store_true"),
        ),
    ),
    "figures": Verb(
        "Draw every figure that a table or a study has content for: metrics against size by pool, "
        "data and model, score against loss, rollout, families of laws, the joint law, the next "
        "run; as PNG, SVG and the numbers behind them.",
        "results.csv --x=tokens --y=bleu --group=data --output=figures",
        _figures,
        (
            TABLE,
            *COLUMNS,
            Argument("--output", "(default: figures beside the table)", metavar="DIR"),
            Argument("--at", "the size to forecast, as for advise"),
            Argument("--law", "what curves are drawn with, as for fit (default: by the metric)"),
            BOUNDS,
            Argument("--json", "their files as JSON", dest="as_json", action="store_true"),
        ),
    ),
}
