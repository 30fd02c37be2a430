"""The verbs of run.py: what they do, an example of each, and their arguments."""

import argparse

DESCRIPTION = """t5scaling: from text to a trustworthy scaling law for transfer learning.

Each verb is one call of the library; `run.py VERB --help` explains it with an example.
"""

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
        "Measure one or all checkpoints of a run on one or more tasks: cross-entropy, the tasks' "
        "metrics with intervals, predictions.",
        "run.py eval --gin_file=gin/models/tiny.gin --gin_file=gin/runs/eval.gin "
        "--gin.MIXTURE_OR_TASK_NAME=techdoc_translate_en_de --gin.MODEL_DIR=runs/finetune",
    ),
    "infer": (
        "Answer each line of a text file with a trained model: translations, in the lines' order. "
        "Killed and started again, it goes on where it was.",
        "run.py infer --gin_file=gin/models/tiny.gin --gin_file=gin/runs/infer.gin "
        "--gin.MODEL_DIR=runs/finetune --gin.INPUT_FILE=sentences.txt "
        "--gin.OUTPUT_FILE=translations.txt --gin.PROMPT='translate English to German: '",
    ),
    "study": (
        "Run what is left of a study, fit its laws and write its report.",
        "run.py study --gin_file=gin/studies/quick.gin --gin.STUDY_DIR=runs/quick",
    ),
    "status": (
        "Show how far a study is: runs done, running, failed and waiting.",
        "run.py status runs/quick",
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
    "comet-setup": (
        "Install COMET, the learned metric of translations, into an environment of its own, from "
        "which evaluations use it.",
        "run.py comet-setup",
    ),
    "report": (
        "Make results.csv, fits.json, the figures and report.html of a study again.",
        "run.py report runs/quick",
    ),
}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run.py", description=DESCRIPTION)
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
            sub.add_argument(
                "--law",
                help="log, ceiling or hill for scores; power, m1, m3, m4 or bnsl for losses; "
                "gordon or gadre where x is a loss; all: every one for such values, compared by "
                "rollout (default: log or power, by direction)",
            )
            sub.add_argument("--hold-out", type=int, help="how many of the largest x to predict")
            sub.add_argument("--json", action="store_true", help="JSON instead of a table")
        elif verb in ("report", "status"):
            sub.add_argument("study_dir", help="directory of a study, as `study` left it")
        elif verb == "comet-setup":
            sub.add_argument("--folder", help="of the environment (default: in the user's cache)")
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
        if verb == "materialize":
            sub.add_argument(
                "--beam",
                metavar="OPTIONS",
                help="do it on Apache Beam, with these pipeline options, such as "
                "'--runner=DirectRunner --direct_num_workers=8'",
            )
        if verb in ("train", "eval", "infer"):
            job = sub.add_argument_group(
                "several processes", "Found from Slurm and Cloud TPU by themselves; else give all:"
            )
            job.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
            job.add_argument("--num_processes", type=int, metavar="N", help="how many there are")
            job.add_argument("--process_id", type=int, metavar="I", help="which of them this is")
    return parser
