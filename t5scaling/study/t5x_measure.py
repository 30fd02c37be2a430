"""The evaluations of a run that T5X has trained, in a process that may take the devices.

Started by `study.t5x` as MODEL_DIR ANSWER: what is measured is in MODEL_DIR/config.gin, and ANSWER
gets a JSON list of the lines for metrics.jsonl. Notes of progress are lines that begin with NOTE.
"""

import json
import os
import sys

from t5scaling import compilation, records

NOTE = "note: "


def main() -> int:
    compilation.prepare()
    from t5scaling.data import examples, work
    from t5scaling.errors import UserError

    if examples.PARENT in os.environ:
        work.end_with(int(os.environ[examples.PARENT]))
    model_dir, answer = sys.argv[1:]
    try:
        lines = measure(model_dir)
    except UserError as error:
        print(f"error: {error}", flush=True)
        return 2
    with open(answer, "w", encoding="utf-8") as file:
        json.dump(lines, file)
    return 0


def measure(model_dir: str) -> list[dict]:
    """A line of each evaluation of the run, on its last checkpoint. Raises UserError."""
    from t5scaling import config
    from t5scaling.training import checkpoint, loop, sharding
    from t5scaling.training import step as step_lib

    config.load([os.path.join(model_dir, records.CONFIG)], {"MODEL_DIR": model_dir})
    arguments = config.bindings_of(loop.train)
    model, last = arguments["model"], arguments["train_steps"]
    layout = sharding.make_layout(arguments.get("mesh_shape"), arguments.get("rules"))
    sharding.check(layout, model)
    ((_, path),) = checkpoint.choose(model_dir, [last])
    params = checkpoint.restore_params(path, step_lib.abstract_params(model, layout))
    return [
        evaluator(
            params,
            config=model,
            layout=layout,
            model_dir=model_dir,
            step=last,
            note=lambda text: print(f"{NOTE}{text}", flush=True),
        )
        for evaluator in arguments.get("evaluators", ())
    ]
