"""Materialisation on Apache Beam: the same items, spread over a runner's workers.

Workers and launcher must see the same work directory and the same packages; nothing but the names
of items travels through the runner.
"""

import argparse
import difflib
import functools
import logging
import shlex
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from t5scaling.errors import UserError


def import_beam():
    """Apache Beam. Raises UserError if it is not installed."""
    logging.disable(logging.WARNING)  # of clients of clouds that are not installed
    try:
        import apache_beam
    except ModuleNotFoundError:
        raise UserError(
            "Apache Beam is not installed: pip install -c constraints.txt -e '.[beam]'"
        ) from None
    finally:
        logging.disable(logging.NOTSET)
    # What a worker raises is raised here again.
    logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)
    return apache_beam


def run(name: str, function: Callable[[Any], None], items: Iterable, options: str) -> None:
    """Calls `function` once for each item on the runner that `options` choose.

    `options`: as on a Beam program's command line, e.g. "--runner=DirectRunner". What `function`
    raises ends the pipeline. Raises UserError for options that Beam does not know.
    """
    beam = import_beam()
    from apache_beam.options.pipeline_options import PipelineOptions

    arguments = shlex.split(options)
    _refuse_slips(arguments, PipelineOptions)
    try:
        pipeline = beam.Pipeline(options=PipelineOptions(arguments))
    except (SystemExit, ValueError) as error:
        raise UserError(f"Beam does not accept the options {options!r}: {error}") from None
    counted = functools.partial(_counted, name, function)
    with pipeline:
        _ = (
            pipeline
            | f"{name} items" >> beam.Create(list(items), reshuffle=False)
            | f"{name} spread" >> beam.Reshuffle()
            | name >> beam.Map(counted)
        )


def _refuse_slips(arguments: Sequence[str], all_options: Any) -> None:
    """Raises UserError for an option that Beam would ignore and that is almost one of its own.

    Others may be meant for a runner that Beam asks for its options only later.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for options in all_options.__subclasses__():
        options._add_argparse_args(parser)
    known = list(parser._option_string_actions)
    for argument in arguments:
        name = argument.partition("=")[0]
        if name.startswith("--") and name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
            if close:
                raise UserError(f"Beam has no option {name}; did you mean {close[0]}?")


def _counted(name: str, function: Callable, item: Any) -> None:
    """Counts for the runner's own display; progress here is read from the work directory."""
    from apache_beam.metrics.metric import Metrics

    examples = Metrics.counter("t5scaling", f"{name}_examples")
    function(item, examples.inc)
    Metrics.counter("t5scaling", f"{name}_items").inc()
