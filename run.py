#!/usr/bin/env python3
"""The command line: each verb is one call of the library, and imports only what it needs."""

import argparse
import os
import signal
import sys
from typing import Any

from t5scaling.command_line import parser


def chosen(arguments: argparse.Namespace, names: str) -> dict:
    return {name: getattr(arguments, name) for name in names.split()}


def call(arguments: argparse.Namespace, overrides: dict[str, str]) -> int:
    """Does the verb; returns the exit status."""
    if not hasattr(arguments, "gin_file"):
        refuse_overrides(arguments.verb, overrides)
    match arguments.verb:
        case "fit":
            from t5scaling.analysis import fit_table, load

            names = "law protocol hold_out delta residual worse_counts interval as_json"
            table = load.named(arguments)
            fit_table.fit_table(arguments.file, table, **chosen(arguments, names))
        case "advise":
            from t5scaling.analysis import advise, load

            names = "at cost_per_unit cost_per_run budget as_json"
            advise.advise(arguments.file, load.named(arguments), **chosen(arguments, names))
        case "figures":
            from t5scaling.analysis import draw, load

            draw.draw(arguments.file, load.named(arguments), **chosen(arguments, "output at"))
        case "report":
            from t5scaling.analysis import archive, report

            report.report(archive.opened(arguments.study_dir))
        case "export":
            from t5scaling.analysis import archive

            archive.export(arguments.study_dir, **chosen(arguments, "output predictions"))
        case "status":
            from t5scaling.analysis import harvest

            if harvest.is_of_t5x(arguments.study_dir):
                from t5scaling.analysis import t5x_study

                t5x_study.show(arguments.study_dir)
                return 0
            from t5scaling.study import status

            status.show(arguments.study_dir, every_run=arguments.all)
        case "comet-setup":
            from t5scaling.evaluation import comet

            comet.setup(arguments.folder)
        case "t5x-setup":
            from t5scaling.interop import t5x_environment

            t5x_environment.setup(arguments.folder, **chosen(arguments, "source extra"))
        case "convert":
            from t5scaling import compilation, convert

            compilation.prepare()
            names = "to step vocabulary"
            convert.convert(arguments.source, arguments.target, **chosen(arguments, names))
        case "doctor":
            from t5scaling import doctor

            return 0 if doctor.doctor(arguments.examples_root) else 1
        case _:
            return call_with_gin(arguments, overrides)
    return 0


def refuse_overrides(verb: str, overrides: dict[str, str]) -> None:
    """Raises UserError for settings that would change nothing."""
    from t5scaling.errors import UserError

    if overrides:
        given = " ".join(f"--gin.{name}" for name in overrides)
        raise UserError(f"{verb} takes no --gin settings, but {given} is given; leave it out")


def call_with_gin(arguments: argparse.Namespace, overrides: dict[str, str]) -> int:
    """Does a verb whose settings are gin files."""
    from t5scaling import compilation, config

    compilation.prepare()
    from t5scaling.training import distributed

    if arguments.verb == "plan":
        from t5scaling.study import plan

        settings = chosen(arguments, "topology utilization output")
        return 0 if plan.plan(arguments.gin_file, overrides, **settings) else 1
    # A run says itself which model it is of.
    optional = ("MODEL",) if arguments.verb in ("eval", "infer") else ()
    text = "" if arguments.verb == "work" else config.load(arguments.gin_file, overrides, optional)
    if arguments.verb == "materialize":
        from t5scaling.study import runner

        runner.materialize(arguments.beam)
        return 0
    if arguments.verb == "study":
        return study(arguments)
    with distributed.job(arguments.coordinator, arguments.num_processes, arguments.process_id):
        from t5scaling.study.executors import local

        if arguments.verb == "train":
            local.train(text)
        elif arguments.verb == "work":
            return 1 if local.work(arguments.study_dir, arguments.runs) else 0
        elif arguments.verb == "eval":
            from t5scaling.evaluation import evaluate

            config.call(evaluate.evaluate_checkpoints)
        elif arguments.verb == "infer":
            from t5scaling.evaluation import infer

            config.call(infer.infer)
    return 0


def study(arguments: argparse.Namespace) -> int:
    """The runs and then the report on them; or what they would cost; or an end to their jobs."""
    from t5scaling import config
    from t5scaling.analysis import harvest
    from t5scaling.study import dry_run, runner

    if arguments.dry_run:
        dry_run.dry_run(**chosen(arguments, "topology utilization output"))
        return 0
    study_dir = config.macro("STUDY_DIR")  # before the runs load configurations of their own
    if arguments.cancel:
        runner.cancel(**config.bindings_of(runner.run_study))
        return 0
    failed = config.call(runner.run_study, detach=arguments.detach)
    if not arguments.detach and not harvest.is_reported(study_dir):
        from t5scaling.analysis import report

        report.report(study_dir)
    return 1 if failed else 0


def with_home(arguments: argparse.Namespace) -> None:
    """Takes a leading ~ as the home folder: after `--output=` a shell leaves it."""

    def expanded(value: Any) -> Any:
        if isinstance(value, list):
            return [expanded(item) for item in value]
        if not isinstance(value, str) or not value.startswith("~"):
            return value
        from t5scaling import storage

        return storage.expanded(value)

    for name, value in vars(arguments).items():
        setattr(arguments, name, expanded(value))


def main(argv: list[str]) -> int:
    from t5scaling.errors import Stopped, UserError, of_files, shortage

    overrides = dict(a[6:].split("=", 1) for a in argv if a.startswith("--gin.") and "=" in a)
    arguments = parser().parse_args([a for a in argv if not (a.startswith("--gin.") and "=" in a)])
    try:
        with_home(arguments)
        return call(arguments, overrides)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signal_number
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # who read it has gone, and Python would say so at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        mistake = of_files(error) if isinstance(error, OSError) else None
        if mistake:  # a folder that may not be read, a file in a folder's place, ...
            print(f"error: {mistake}", file=sys.stderr)
            return 2
        reason = shortage(error)
        if reason is None:
            raise
        print(f"error: {reason}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
