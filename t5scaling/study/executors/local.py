"""The local executor: one run after the other in this process.

Runs of one shape share their compilation, and nothing is imported twice.
"""

from collections.abc import Mapping
from typing import Any

from t5scaling import config
from t5scaling.errors import Stopped
from t5scaling.study.study import data_specs
from t5scaling.training import distributed, loop, run_directory, tracker


def train(
    config_text: str,
    record: Mapping[str, Any] | None = None,
    progress: tracker.Progress | None = None,
) -> None:
    """Does the training run whose gin configuration is loaded, or goes on with it.

    The run directory gets config.gin and `record`, at the end DONE, or FAILED with the reason.

    Args:
        config_text: what `config.load` returned.
        record: the run's place in a study.
        progress: as for `loop.train`.

    Raises:
        Whatever stops it: UserError, Stopped, or an unexpected error.
    """
    config.require(loop.train)
    arguments = config.bindings_of(loop.train)
    model_dir = arguments["model_dir"]
    # All the run's examples in one child process, and every mistake in them before the first step.
    distributed.ready_examples(data_specs(arguments), arguments["examples_root"])
    if distributed.is_main():
        run_directory.begin(model_dir, config_text, record)
    try:
        config.call(loop.train, progress=progress)
    except Stopped:
        raise
    except Exception as error:
        if distributed.is_main():
            run_directory.fail(model_dir, error)
        raise
