#!/usr/bin/env python3
"""t5scaling: from text to a trustworthy scaling law for transfer learning.

Each verb is one call of the library; `run.py VERB --help` explains it with an example.
"""

import argparse
import sys

# verb -> (what it does, example)
VERBS = {
    "materialize": (
        "Write the examples that a run or a study needs to disk, numbered and shuffled. Training "
        "does this by itself when they are missing.",
        "run.py materialize --gin_file=gin/models/tiny.gin --gin_file=gin/runs/pretrain.gin "
        "--gin.MIXTURE_OR_TASK_NAME=techdoc_span_en50_de50",
    ),
    "train": (
        "Pretrain or finetune one model. Killed and started again, it goes on where it was.",
        "run.py train --gin_file=gin/models/tiny.gin --gin_file=gin/runs/pretrain.gin "
        "--gin.MIXTURE_OR_TASK_NAME=techdoc_span_en50_de50 --gin.TRAIN_STEPS=200 "
        "--gin.MODEL_DIR=runs/pretrain",
    ),
    "eval": (
        "Measure checkpoints of a run: cross-entropy, BLEU, chrF, predictions.",
        "run.py eval --gin_file=gin/models/tiny.gin --gin_file=gin/runs/eval.gin "
        "--gin.MIXTURE_OR_TASK_NAME=techdoc_translate_en_de --gin.MODEL_DIR=runs/finetune",
    ),
    "study": (
        "Run what is left of a study, fit its laws and write its report.",
        "run.py study --gin_file=gin/studies/quick.gin --gin.STUDY_DIR=runs/quick",
    ),
    "fit": (
        "Fit a scaling law to a CSV or TSV of two columns (or more, named by --x, --y, --group).",
        "run.py fit results.csv --x=tokens --y=loss --law=power",
    ),
    "plan": (
        "Say whether a run or a study fits on TPUs that need not be there, or on the devices here, "
        "and what it would cost: compiles the train step ahead of time. Exits with 1 if it does "
        "not fit.",
        "run.py plan --gin_file=gin/models/isik2024/3b.gin --gin_file=gin/runs/pretrain.gin "
        "--gin.BATCH_SIZE=256 --gin.TRAIN_STEPS=1_000_000 "
        "--gin.MESH_SHAPE='{\"fsdp\": 64}' --topology=v5e:8x8",
    ),
    "doctor": (
        "Show versions, devices, caches and what is missing for which verb, and take ten training "
        "steps as a test.",
        "run.py doctor",
    ),
    "report": (
        "Make results.csv, fits.json, the figures and report.html of a study again.",
        "run.py report runs/quick",
    ),
}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (summary, example) in VERBS.items():
        sub = verbs.add_parser(
            verb, help=summary, description=summary, epilog=f"Example: python {example}"
        )
        if verb == "fit":
            sub.add_argument("file", help="CSV or TSV with a header line")
            sub.add_argument("--x", help="column of data sizes (default: the first of two)")
            sub.add_argument("--y", help="column of scores or losses (default: the second of two)")
            sub.add_argument("--group", default="", help="columns, by commas: a curve per value")
            sub.add_argument("--law", help="log, power or all (default: by direction)")
            sub.add_argument("--hold-out", type=int, help="how many of the largest x to predict")
            sub.add_argument("--json", action="store_true", help="JSON instead of a table")
        elif verb == "report":
            sub.add_argument("study_dir", help="directory of a study, as `study` left it")
        elif verb == "doctor":
            sub.add_argument("--examples_root", default="runs/examples", help="of the runs")
        else:
            sub.add_argument("--gin_file", action="append", default=[], help="may be repeated")
            sub.add_argument("--gin.NAME", metavar="VALUE", help="sets one gin parameter")
        if verb == "plan":
            sub.add_argument(
                "--topology",
                default="local",
                help="a TPU slice, such as v4:4x4x4, v5e:4x4, v5p:2x2x4 or v6e:8x8; or local "
                "(the default): the devices here",
            )
            sub.add_argument(
                "--utilization",
                type=float,
                default=0.4,
                help="share of the devices' peak that is assumed to be reached (default: 0.4)",
            )
            sub.add_argument("--output", metavar="DIR", help="write plan.txt and plan.json there")
        if verb in ("train", "eval"):
            job = sub.add_argument_group(
                "several processes", "Found from Slurm and Cloud TPU by themselves; else give all:"
            )
            job.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
            job.add_argument("--num_processes", type=int, metavar="N", help="how many there are")
            job.add_argument("--process_id", type=int, metavar="I", help="which of them this is")
    return parser


def call(arguments: argparse.Namespace, overrides: dict[str, str]) -> int:
    """Does the verb; imports only what the verb needs."""
    if arguments.verb == "fit":
        from t5scaling.analysis import fit_csv

        group = [name for name in arguments.group.split(",") if name]
        fit_csv.fit_csv(
            arguments.file,
            x=arguments.x,
            y=arguments.y,
            group=group,
            law=arguments.law,
            hold_out=arguments.hold_out,
            as_json=arguments.json,
        )
        return 0
    if arguments.verb == "report":
        from t5scaling.analysis import report

        report.report(arguments.study_dir)
        return 0

    if arguments.verb == "doctor":
        from t5scaling import doctor

        return 0 if doctor.doctor(arguments.examples_root) else 1

    from t5scaling import compilation, config

    compilation.prepare()
    if arguments.verb == "plan":
        from t5scaling.study import plan

        fits = plan.plan(
            arguments.gin_file,
            overrides,
            topology=arguments.topology,
            utilization=arguments.utilization,
            output=arguments.output,
        )
        return 0 if fits else 1
    text = config.load(arguments.gin_file, overrides)
    if arguments.verb == "materialize":
        from t5scaling.study import runner

        runner.materialize()
    elif arguments.verb == "train":
        from t5scaling.study.executors import local
        from t5scaling.training import distributed

        with distributed.job(*_job(arguments)):
            local.train(text)
    elif arguments.verb == "eval":
        from t5scaling.evaluation import evaluate
        from t5scaling.training import distributed

        with distributed.job(*_job(arguments)):
            config.call(evaluate.evaluate_checkpoints)
    elif arguments.verb == "study":
        from t5scaling.analysis import report
        from t5scaling.study import runner

        study_dir = config.macro("STUDY_DIR")  # before the runs load configurations of their own
        failed = config.call(runner.run_study)
        report.report(study_dir)
        return 1 if failed else 0
    return 0


def _job(arguments: argparse.Namespace) -> tuple[str | None, int | None, int | None]:
    return arguments.coordinator, arguments.num_processes, arguments.process_id


def main(argv: list[str]) -> int:
    from t5scaling.errors import Stopped, UserError

    overrides = dict(a[6:].split("=", 1) for a in argv if a.startswith("--gin.") and "=" in a)
    arguments = parser().parse_args([a for a in argv if not (a.startswith("--gin.") and "=" in a)])
    try:
        return call(arguments, overrides)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signal_number
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
