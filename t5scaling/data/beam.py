"""Materialisation on Apache Beam: the same items, spread over a runner's workers.

Workers and launcher must see the same work directory and the same packages; nothing but the names
of items travels through the runner.
"""

import functools
import shlex
from collections.abc import Callable, Iterable
from typing import Any

from t5scaling.errors import UserError


def import_beam():
    """Apache Beam. Raises UserError if it is not installed."""
    try:
        import apache_beam
    except ModuleNotFoundError:
        raise UserError(
            "Apache Beam is not installed: pip install -c constraints.txt -e '.[beam]'"
        ) from None
    return apache_beam


def run(name: str, function: Callable[[Any], None], items: Iterable, options: str) -> None:
    """Calls `function` once for each item on the runner that `options` choose.

    `options`: as on a Beam program's command line, e.g. "--runner=DirectRunner". What `function`
    raises ends the pipeline. Raises UserError for options that Beam does not know.
    """
    beam = import_beam()
    from apache_beam.options.pipeline_options import PipelineOptions

    arguments = shlex.split(options)
    try:
        parsed = PipelineOptions(arguments)
        pipeline = beam.Pipeline(options=parsed)
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


def _counted(name: str, function: Callable, item: Any) -> None:
    """Counts for the runner's own display; progress here is read from the work directory."""
    from apache_beam.metrics import Metrics

    examples = Metrics.counter("t5scaling", f"{name}_examples")
    function(item, examples.inc)
    Metrics.counter("t5scaling", f"{name}_items").inc()
