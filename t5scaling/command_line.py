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
        "Run what is left of a study, fit its laws and write its report; or, with --dry_run, say "
        "what it would cost.",
        "run.py study --gin_file=gin/studies/quick.gin --gin.STUDY_DIR=runs/quick",
    ),
    "work": (
        "Do some runs of a study whose directories are prepared: what the jobs of a cluster call.",
        "run.py work runs/quick pretrain/en50_de50",
    ),
    "status": (
        "Show how far a study is: runs done, running, failed and waiting.",
        "run.py status runs/quick",
    ),
    "fit": (
        "Fit scaling laws to a table (CSV, TSV or parquet) or to a directory of runs, ours or "
        "T5X's: coefficients with intervals, held-out errors, verdicts.",
        "run.py fit results.csv --x=tokens --y=loss --law=power",
    ),
    "advise": (
        "Say what the measurements mean for the next purchase: is pretraining worth it, do the "
        "data suffice, what score at a larger size, which data, which run next.",
        "run.py advise runs/quick --at=1e9",
    ),
    "figures": (
        "Draw every figure that a table or a study has content for: metrics against size by pool, "
        "data and model, score against loss, rollout, families of laws, the joint law, the next "
        "run; as PNG, SVG and the numbers behind them.",
        "run.py figures results.csv --x=tokens --y=bleu --group=data --output=figures",
    ),
    "plan": (
        "Say whether a run or a study fits on TPUs or GPUs that need not be there, or on the "
        "devices here, and what it would cost: compiles the train step ahead of time. Exits with 1 "
        "if it does not fit.",
        "run.py plan --gin_file=gin/models/isik2024/3b.gin --gin_file=gin/runs/pretrain.gin "
        "--gin.BATCH_SIZE=256 --gin.TRAIN_STEPS=1_000_000 "
        "--gin.MESH_SHAPE='{\"fsdp\": 64}' --topology=v5e:8x8; "
        "for one NVIDIA H100: run.py plan --gin_file=gin/models/t5_1_1/base.gin "
        "--gin_file=gin/runs/pretrain.gin --gin.BATCH_SIZE=64 --gin.TRAIN_STEPS=100_000 "
        "--topology=h100",
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
    "t5x-setup": (
        "Install stock T5X into an environment of its own, from which gin/runs/t5x.gin and "
        "gin/executors/t5x.gin have it train: packages in versions that go together, and T5X, "
        "airio and jestimator from GitHub or from clones.",
        "run.py t5x-setup",
    ),
    "convert": (
        "Convert a trained model between t5scaling, T5X and Hugging Face: parameters, vocabulary "
        "and, between the first two, the optimizer's moments. The source's format is recognised.",
        "run.py convert runs/finetune exported/finetune --to=huggingface",
    ),
    "report": (
        "Make results.csv, fits.json, the figures and report.html of a study again; of an archive "
        "of `export` too, which is unpacked beside it.",
        "run.py report runs/quick",
    ),
    "export": (
        "Pack a study into one file that `report` opens elsewhere: results.csv, runs.jsonl, fits, "
        "figures and report, and of each run its gin text, its place in the study, its metrics, "
        "times and evaluations, and why it failed; no checkpoints, no examples. Of paths, only "
        "what lies in the study goes along, and the last name of others. Names of tasks, data, "
        "models and languages go as they are.",
        "run.py export runs/quick --output=quick.tar.gz",
    ),
}


def _add_table(sub: argparse.ArgumentParser) -> None:
    """Where measurements come from."""
    sub.add_argument("file", help="CSV, TSV or parquet; a study's directory; T5X's runs")
    sub.add_argument("--x", help="column of data sizes, or two by a comma (default: the first)")
    sub.add_argument("--y", help="column of scores or losses; of runs: a metric's name")
    sub.add_argument("--group", default="", help="columns, by commas: a curve per value")
    sub.add_argument("--error", help="column of standard errors of y, which weigh the points")
    sub.add_argument("--seed", help="column of seeds")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run.py", description=DESCRIPTION)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (summary, example) in VERBS.items():
        sub = verbs.add_parser(
            verb, help=summary, description=summary, epilog=f"Example: python {example}"
        )
        if verb == "fit":
            _add_table(sub)
            sub.add_argument(
                "--law",
                help="log, ceiling or hill for scores; power, m1, m3, m4 or bnsl for losses; "
                "gordon or gadre where x is a loss; zhang, zhang-additive, chinchilla, kaplan, "
                "hernandez or muennighoff where x is two columns; all: every one for such values, "
                "compared by what they had not seen (default: log, power or zhang)",
            )
            sub.add_argument("--hold-out", type=int, help="how many of the largest x to predict")
            sub.add_argument(
                "--protocol",
                default="rollout",
                help="of --law=all: rollout, smallest (the 4 smallest predict the rest) or last "
                "(default: rollout)",
            )
            sub.add_argument(
                "--interval",
                default="noise",
                help="noise (parametric bootstrap), points or seeds (resampled) or profile "
                "(likelihood) (default: noise)",
            )
            sub.add_argument(
                "--residual",
                default="log",
                help="log, value, or reducible: of logs above the floor (default: log)",
            )
            sub.add_argument("--delta", type=float, help="Huber's threshold; inf: squares")
            sub.add_argument(
                "--worse-counts",
                type=float,
                default=1.0,
                help="weight of points worse than the law, below 1 where runs may be under-tuned "
                "(default: 1)",
            )
            sub.add_argument(
                "--json", dest="as_json", action="store_true", help="JSON instead of tables"
            )
        elif verb == "figures":
            _add_table(sub)
            sub.add_argument("--output", metavar="DIR", help="(default: figures beside the table)")
            sub.add_argument("--at", type=float, help="size of the forecasts, as for advise")
        elif verb == "advise":
            _add_table(sub)
            sub.add_argument("--at", type=float, help="the size asked for (default: 4x largest)")
            sub.add_argument(
                "--cost-per-unit",
                type=float,
                help="device-hours of pretraining per unit of x (default: as the study measured)",
            )
            sub.add_argument(
                "--cost-per-run", type=float, help="device-hours of one finetuning (default: same)"
            )
            sub.add_argument(
                "--budget", type=float, help="device-hours to spend (default: one run at --at)"
            )
            sub.add_argument(
                "--json", dest="as_json", action="store_true", help="JSON instead of text"
            )
        elif verb in ("report", "status", "work", "export"):
            sub.add_argument("study_dir", help="directory of a study, as `study` left it")
            if verb == "status":
                sub.add_argument("--all", action="store_true", help="a row for every run")
            if verb == "export":
                sub.add_argument("--output", metavar="FILE", help="(default: STUDY_DIR.tar.gz)")
                sub.add_argument(
                    "--predictions", action="store_true", help="with the models' answers"
                )
            if verb == "work":
                sub.add_argument("runs", nargs="+", metavar="RUN", help="ids of its runs")
        elif verb == "convert":
            sub.add_argument("source", help="a run, a T5X checkpoint or a Hugging Face folder")
            sub.add_argument("target", help="the directory to make; it must not exist")
            sub.add_argument(
                "--to", required=True, help="t5scaling, t5x or huggingface", metavar="FORMAT"
            )
            sub.add_argument("--step", type=int, help="of the checkpoint (default: the last)")
            sub.add_argument(
                "--vocabulary", metavar="FILE", help="SentencePiece model, if the source has none"
            )
        elif verb in ("comet-setup", "t5x-setup"):
            sub.add_argument("--folder", help="of the environment (default: in the user's cache)")
            if verb == "t5x-setup":
                sub.add_argument(
                    "--source",
                    metavar="DIR",
                    help="folder with clones named t5x, airio and jestimator (default: GitHub)",
                )
                sub.add_argument("--extra", help="for devices: gpu, cuda12 or tpu")
        elif verb == "doctor":
            sub.add_argument("--examples_root", default="runs/examples", help="of the runs")
        else:
            sub.add_argument("--gin_file", action="append", default=[], help="may be repeated")
            sub.add_argument("--gin.NAME", metavar="VALUE", help="sets one gin parameter")
        if verb == "study":
            sub.add_argument(
                "--dry_run",
                action="store_true",
                help="print runs, steps, tokens, device-hours and storage per part, and what "
                "waits for what; compiles and runs nothing",
            )
            sub.add_argument(
                "--detach", action="store_true", help="do not wait for the jobs of a cluster"
            )
            sub.add_argument("--cancel", action="store_true", help="end the jobs of a cluster")
        if verb in ("plan", "study"):
            sub.add_argument(
                "--topology",
                default="local" if verb == "plan" else None,
                help="a TPU slice, such as v4:4x4x4, v5e:4x4, v5p:2x2x4 or v6e:8x8; GPUs: a100, "
                "a100-40gb, h100 or h200, h100:8 in one machine, h100:2x8 in two, or FILE.pbtxt:8 "
                "as XLA describes another card; or local: the devices here (default: "
                + ("local)" if verb == "plan" else "the study's, else local)"),
            )
            sub.add_argument(
                "--utilization",
                type=float,
                default=0.4,
                help="share of the devices' peak that is assumed to be reached (default: 0.4)",
            )
            sub.add_argument("--output", metavar="DIR", help=f"write {verb}.txt and .json there")
        if verb == "materialize":
            sub.add_argument(
                "--beam",
                metavar="OPTIONS",
                help="do it on Apache Beam, with these pipeline options, such as "
                "'--runner=DirectRunner --direct_num_workers=8'",
            )
        if verb in ("train", "eval", "infer", "work"):
            job = sub.add_argument_group(
                "several processes", "Found from Slurm and Cloud TPU by themselves; else give all:"
            )
            job.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
            job.add_argument("--num_processes", type=int, metavar="N", help="how many there are")
            job.add_argument("--process_id", type=int, metavar="I", help="which of them this is")
    return parser
