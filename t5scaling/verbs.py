"""What the command line can do: for each verb a summary, an example, its arguments and the call it
is (`verb.Verb`); those for measurements are in `law_verbs`.
"""

import contextlib

from t5scaling.law_verbs import LAW_VERBS
from t5scaling.verb import Argument, Verb

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


def _study(gin_files, settings, dry_run, detach, cancel, processes, topology, utilization, output):
    """The runs and then the report on them; or what they would cost; or an end to their jobs."""
    from t5scaling import config
    from t5scaling.errors import UserError
    from t5scaling.study import dry_run as dry
    from t5scaling.study import runner, sharing
    from t5scaling.study.executors import local

    config.load(gin_files, settings)
    if dry_run:
        dry.dry_run(topology=topology, utilization=utilization, output=output)
        return 0
    study_dir = config.macro("STUDY_DIR")  # before the runs load configurations of their own
    if cancel:
        runner.cancel(**config.bindings_of(runner.run_study))
        return 0
    executor = config.bindings_of(runner.run_study).get("executor")
    if processes != 1 and not (executor is None or isinstance(executor, local.Local)):
        raise UserError(
            "--processes is for a study that this machine does by itself, and the study has an "
            "executor; leave one of them out"
        )
    command = ["study", *(f"--gin_file={name}" for name in gin_files)]
    command += [f"--gin.{name}={value}" for name, value in settings.items()]
    with sharing.shared(processes, command, study_dir):
        failed = config.call(runner.run_study, detach=detach)
        if not detach:
            _report_once(study_dir)
    return 1 if failed else 0


def _report_once(study_dir):
    """The report on the runs as they are, by one of the processes that share the study."""
    import time

    from t5scaling import records, storage
    from t5scaling.analysis.results import harvest
    from t5scaling.training import claim

    place = str(storage.path(study_dir) / records.REPORTING)
    waits = False
    while not harvest.is_reported(study_dir):
        try:
            with claim.hold(place):
                if not harvest.is_reported(study_dir):  # it was not when this one looked
                    from t5scaling.analysis import report

                    report.report(study_dir)
                return
        except claim.Taken:
            if not waits:
                print(f"{claim.holder(place) or 'another process'} writes the report: waiting")
            waits = True
            time.sleep(0.5)


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
            Argument(
                "--processes",
                "processes of this machine that share the runs (default: 1): more use a GPU better "
                "that one small model leaves idle, and several cores better than one process does",
                type=int,
                default=1,
                metavar="N",
            ),
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
    **LAW_VERBS,
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
