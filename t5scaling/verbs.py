"""What the command line can do: for each verb a summary, an example, its arguments and the call it
is.

An action takes its arguments by their names and imports what it needs itself, so that a verb loads
nothing of the others. It returns the exit status, None for 0.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any


class Argument:
    """An argument of a verb: `flag` as it is typed, "--x" or "file", with argparse's options.

    One that is optional is None where it is not given, unless the options say otherwise.
    """

    def __init__(self, flag: str, help: str, **options: Any):
        self.flag, self.options = flag, {"help": help, **options}

    @property
    def name(self) -> str:
        """Of the action's parameter."""
        return self.options.get("dest") or self.flag.lstrip("-")


@dataclasses.dataclass(frozen=True)
class Verb:
    """One call of the library.

    Attributes:
        summary: what it does, in a sentence or two.
        example: arguments of a call.
        action: does it.
        arguments: the action's, beside those of gin and of jobs.
        needs: the extra of the package whose requirements it imports, "" for the main ones.
        gin: whether gin files and settings (--gin_file, --gin.NAME=value) say what to do; the
            action then gets `gin_files`, and `settings`: name -> value as typed.
        job: whether several processes may do it together; the action then gets `job`, a context
            in which this one is part of them.
    """

    summary: str
    example: str
    action: Callable[..., int | None]
    arguments: Sequence[Argument] = ()
    needs: str = ""
    gin: bool = False
    job: bool = False

    def call(self, given: Mapping[str, Any], settings: Mapping[str, str]) -> int:
        """Does it. `given`: the arguments, with those of `GIN` and `JOB`."""
        arguments = {argument.name: given[argument.name] for argument in self.arguments}
        if self.gin or self.job:
            from t5scaling import compilation

            compilation.prepare()  # before anything imports JAX
        if self.gin:
            arguments |= {"gin_files": given["gin_file"], "settings": settings}
        if self.job:
            from t5scaling.training import distributed

            arguments["job"] = distributed.job(*(given[argument.name] for argument in JOB))
        return self.action(**arguments) or 0


GIN = (
    Argument("--gin_file", "may be repeated", action="append", default=[]),
    Argument("--gin.NAME", "sets one gin parameter", metavar="VALUE"),
)
JOB = (
    Argument("--coordinator", "address of process 0", metavar="HOST:PORT"),
    Argument("--num_processes", "the number of processes", type=int, metavar="N"),
    Argument("--process_id", "the number of this process, from 0", type=int, metavar="I"),
)
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
STUDY_DIR = Argument("study_dir", "directory in which `study` runs the study")
FOLDER = Argument("--folder", "folder of the environment (default: in the user's cache)")
UTILIZATION = Argument(
    "--utilization",
    "share of the devices' peak that is assumed to be reached (default: 0.4)",
    type=float,
    default=0.4,
)


def _topology(default: str | None, shown: str) -> Argument:
    return Argument(
        "--topology",
        "a TPU slice, such as v4:4x4x4, v5e:4x4, v5p:2x2x4 or v6e:8x8; GPUs: a100, a100-40gb, "
        "h100 or h200, h100:8 in one machine, h100:2x8 in two, or FILE.pbtxt:8 as XLA describes "
        f"another card; or local: the devices here (default: {shown})",
        default=default,
    )


# --- data and training ----------------------------------------------------------------------------


@contextlib.contextmanager
def _together(job, verb, text="", runs=()):
    """As one of the job's processes, which all do the same: UserError says where they differ."""
    with job:
        from t5scaling.training import agreement

        agreement.check({**agreement.code(), "verb": verb, "setting": text, "run": list(runs)})
        yield


def _materialize(gin_files, settings, beam):
    from t5scaling import config
    from t5scaling.study import runner

    config.load(gin_files, settings)
    runner.materialize(beam)


def _train(gin_files, settings, job):
    from t5scaling import config
    from t5scaling.study.executors import local

    text = config.load(gin_files, settings)
    with _together(job, "train", text):
        local.train(text)


def _eval(gin_files, settings, job):
    from t5scaling import config
    from t5scaling.evaluation import evaluate

    # A run says itself which model it is of.
    text = config.load(gin_files, settings, optional=("MODEL",))
    with _together(job, "eval", text):
        config.call(evaluate.evaluate_checkpoints)


def _infer(gin_files, settings, job):
    from t5scaling import config
    from t5scaling.evaluation import infer

    text = config.load(gin_files, settings, optional=("MODEL",))
    with _together(job, "infer", text):
        config.call(infer.infer)


def _convert(source, target, **settings):
    from t5scaling import compilation, convert

    compilation.prepare()
    convert.convert(source, target, **settings)


# --- studies --------------------------------------------------------------------------------------


def _study(gin_files, settings, dry_run, detach, cancel, topology, utilization, output):
    """The runs and then the report on them; or what they would cost; or an end to their jobs."""
    from t5scaling import config
    from t5scaling.analysis.results import harvest
    from t5scaling.study import dry_run as dry
    from t5scaling.study import runner

    config.load(gin_files, settings)
    if dry_run:
        dry.dry_run(topology=topology, utilization=utilization, output=output)
        return 0
    study_dir = config.macro("STUDY_DIR")  # before the runs load configurations of their own
    if cancel:
        runner.cancel(**config.bindings_of(runner.run_study))
        return 0
    failed = config.call(runner.run_study, detach=detach)
    if not detach and not harvest.is_reported(study_dir):
        from t5scaling.analysis import report

        report.report(study_dir)
    return 1 if failed else 0


def _work(study_dir, runs, job):
    from t5scaling.study.executors import local

    with _together(job, "work", runs=(study_dir, *runs)):
        return 1 if local.work(study_dir, runs) else 0


def _status(study_dir, all):
    from t5scaling.analysis.results import harvest

    if harvest.is_of_t5x(study_dir):
        from t5scaling.analysis.results import t5x_study

        t5x_study.show(study_dir)
        return
    from t5scaling.study import status

    status.show(study_dir, every_run=all)


def _report(study_dir):
    from t5scaling.analysis import archive, report

    report.report(archive.opened(study_dir))


def _export(study_dir, **settings):
    from t5scaling.analysis import archive

    archive.export(study_dir, **settings)


def _plan(gin_files, settings, **devices):
    from t5scaling.study import plan

    return 0 if plan.plan(gin_files, settings, **devices) else 1


# --- laws -----------------------------------------------------------------------------------------


def _columns(settings):
    """Takes those arguments out that name columns."""
    from t5scaling.analysis.results import load

    return load.named(**{argument.name: settings.pop(argument.name) for argument in COLUMNS})


def _fit(file, **settings):
    from t5scaling.analysis import fit_table

    fit_table.fit_table(file, _columns(settings), **settings)


def _advise(file, at, law, bounds, compute, **settings):
    from t5scaling.analysis import advise, predict, two_sizes
    from t5scaling.errors import UserError

    columns = _columns(settings)
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


def _predict(file, **settings):
    from t5scaling.analysis import predict

    predict.predict(file, _columns(settings), **settings)


def _figures(file, at, **settings):
    from t5scaling.analysis import draw, two_sizes
    from t5scaling.errors import UserError

    columns = _columns(settings)
    if len(columns.x) == 2:
        if at is not None:
            raise UserError("--at is for figures of one size")
        two_sizes.draw(file, columns, **settings)
    else:
        draw.draw(file, columns, at=at, **settings)


# --- this machine ---------------------------------------------------------------------------------


def _doctor(examples_root):
    from t5scaling import doctor

    return 0 if doctor.doctor(examples_root) else 1


def _comet_setup(folder):
    from t5scaling.evaluation import comet

    comet.setup(folder)


def _t5x_setup(folder, **settings):
    from t5scaling.interop import t5x_environment

    t5x_environment.setup(folder, **settings)


VERBS = {
    "materialize": Verb(
        "Write the examples that a run or a study needs to disk, numbered and shuffled. Training "
        "does this by itself when they are missing.",
        "--gin_file=gin/models/tiny.gin --gin_file=gin/runs/pretrain.gin "
        "--gin.MIXTURE_OR_TASK_NAME=techdoc_span_en50_de50",
        _materialize,
        (
            Argument(
                "--beam",
                "do it on Apache Beam, with these pipeline options, such as "
                "'--runner=DirectRunner --direct_num_workers=8'",
                metavar="OPTIONS",
            ),
        ),
        needs="study",
        gin=True,
    ),
    "train": Verb(
        "Pretrain or finetune one model. If it is killed, the same command continues it.",
        "--gin_file=gin/models/tiny.gin --gin_file=gin/runs/pretrain.gin "
        "--gin.MIXTURE_OR_TASK_NAME=techdoc_span_en50_de50 --gin.TRAIN_STEPS=200 "
        "--gin.MODEL_DIR=runs/pretrain",
        _train,
        needs="train",
        gin=True,
        job=True,
    ),
    "eval": Verb(
        "Measure one or all checkpoints of a run on one or more tasks: cross-entropy, the tasks' "
        "metrics with intervals, predictions. The results go to eval.jsonl and inference_eval/ in "
        "the run's directory; the tables of a study do not take them in, because the points of a "
        "curve must be measured alike, by what each run evaluates during its training.",
        "--gin_file=gin/models/tiny.gin --gin_file=gin/runs/eval.gin "
        "--gin.MIXTURE_OR_TASK_NAME=techdoc_translate_en_de --gin.MODEL_DIR=runs/finetune",
        _eval,
        needs="train",
        gin=True,
        job=True,
    ),
    "infer": Verb(
        "Answer each line of a text file with a trained model: translations, in the lines' order. "
        "If it is killed, the same command continues it.",
        "--gin_file=gin/models/tiny.gin --gin_file=gin/runs/infer.gin "
        "--gin.MODEL_DIR=runs/finetune --gin.INPUT_FILE=sentences.txt "
        "--gin.OUTPUT_FILE=translations.txt --gin.PROMPT='translate English to German: '",
        _infer,
        needs="train",
        gin=True,
        job=True,
    ),
    "study": Verb(
        "Run what is left of a study, fit its laws and write its report; or, with --dry_run, say "
        "what it would cost.",
        "--gin_file=gin/studies/quick.gin --gin.STUDY_DIR=runs/quick",
        _study,
        (
            Argument(
                "--dry_run",
                "print runs, steps, tokens, device-hours and storage per part, and in which order "
                "runs follow each other; compiles and runs nothing",
                action="store_true",
            ),
            Argument("--detach", "do not wait for the jobs of a cluster", action="store_true"),
            Argument("--cancel", "end the jobs of a cluster", action="store_true"),
            _topology(None, "that of the study's executor, or else local"),
            UTILIZATION,
            Argument(
                "--output", "folder in which study.txt and study.json are written", metavar="DIR"
            ),
        ),
        needs="study",
        gin=True,
    ),
    "work": Verb(
        "Do some runs of a study whose directories are prepared: what the jobs of a cluster call.",
        "runs/quick pretrain/en50_de50",
        _work,
        (STUDY_DIR, Argument("runs", "ids of the study's runs", nargs="+", metavar="RUN")),
        needs="train",
        job=True,
    ),
    "status": Verb(
        "Show how far a study is: runs done, running, failed and waiting.",
        "runs/quick",
        _status,
        (STUDY_DIR, Argument("--all", "a row for every run", action="store_true")),
    ),
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
                "log, ceiling or hill for scores; power, m1, m3, m4 or bnsl for losses; "
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
            Argument("--fit_below", "hold out x from this size on instead", type=float),
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
        "results.csv --x=parameters,tokens --y=loss --law=chinchilla --at=7e10,1.4e12 "
        "--compute=5.76e23",
        _predict,
        (
            TABLE,
            *COLUMNS,
            Argument(
                "--at",
                "a size, or two by a comma of a law of two; may be repeated",
                action="append",
                default=[],
                metavar="X[,X2]",
            ),
            Argument(
                "--compute",
                "a budget of floating-point operations; may be repeated",
                action="append",
                default=[],
                type=float,
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
                "the size to forecast, two separated by a comma where x is two columns "
                "(default: 4x largest)",
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
                type=float,
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
            Argument("--at", "the size to forecast, as for advise", type=float),
            Argument("--law", "what curves are drawn with, as for fit (default: by the metric)"),
            BOUNDS,
            Argument("--json", "their files as JSON", dest="as_json", action="store_true"),
        ),
    ),
    "plan": Verb(
        "Report whether a run or a study fits on TPUs or GPUs, which this machine need not have, "
        "or on its own devices, and what it would cost: compiles the train step ahead of time. "
        "Exits with 1 if it does not fit.",
        "--gin_file=gin/models/t5_1_1/base.gin --gin_file=gin/runs/pretrain.gin "
        "--gin.BATCH_SIZE=64 --gin.TRAIN_STEPS=100_000 --topology=h100",
        _plan,
        (
            _topology("local", "local"),
            UTILIZATION,
            Argument(
                "--output", "folder in which plan.txt and plan.json are written", metavar="DIR"
            ),
        ),
        needs="train",
        gin=True,
    ),
    "doctor": Verb(
        "Show versions, devices, caches and what is missing for which verb, and take ten training "
        "steps as a test.",
        "",
        _doctor,
        (Argument("--examples_root", "of the runs", default="runs/examples"),),
    ),
    "comet-setup": Verb(
        "Install COMET, the learned metric of translations, into an environment of its own, from "
        "which evaluations use it.",
        "",
        _comet_setup,
        (FOLDER,),
    ),
    "t5x-setup": Verb(
        "Install stock T5X into an environment of its own, which gin/runs/t5x.gin and "
        "gin/executors/t5x.gin use for training: packages in versions that work together, and "
        "T5X, airio and jestimator from GitHub or from clones.",
        "",
        _t5x_setup,
        (
            FOLDER,
            Argument(
                "--source",
                "folder with clones named t5x, airio and jestimator (default: GitHub)",
                metavar="DIR",
            ),
            Argument("--extra", "the devices to install for: gpu, cuda12 or tpu"),
        ),
    ),
    "convert": Verb(
        "Convert a trained model between t5scaling, T5X and Hugging Face: parameters, vocabulary "
        "and, between the first two, the optimizer's moments. The source's format is recognised.",
        "runs/finetune exported/finetune --to=huggingface",
        _convert,
        (
            Argument("source", "a run, a T5X checkpoint or a Hugging Face folder"),
            Argument("target", "the directory to write, which must not exist yet"),
            Argument("--to", "t5scaling, t5x or huggingface", required=True, metavar="FORMAT"),
            Argument("--step", "step of the checkpoint (default: the last)", type=int),
            Argument(
                "--vocabulary",
                'SentencePiece model, or "bytes", if the source has none',
                metavar="FILE",
            ),
        ),
        needs="train",
    ),
    "report": Verb(
        "Rebuild results.csv, fits.json, findings.json, the figures and report.html of a study, or "
        "of an archive made by `export`, which is unpacked beside it.",
        "runs/quick",
        _report,
        (STUDY_DIR,),
    ),
    "export": Verb(
        "Pack a study into one file that `report` opens elsewhere: results.csv, runs.jsonl, fits, "
        "figures and report, and of each run its gin text, its place in the study, its metrics, "
        "times and evaluations, and why it failed; no checkpoints, no examples. Of paths, only "
        "those within the study are kept whole, of others only the last name. Names of tasks, "
        "data, models and languages are kept as they are.",
        "runs/quick --output=quick.tar.gz",
        _export,
        (
            STUDY_DIR,
            Argument("--output", "(default: STUDY_DIR.tar.gz)", metavar="FILE"),
            Argument("--predictions", "include the models' answers", action="store_true"),
        ),
    ),
}
