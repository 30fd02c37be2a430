"""The far side of comet.py: runs in COMET's own environment and knows nothing of this package.

    python -I comet_worker.py REQUEST ANSWER

REQUEST is JSON: {"model": name on the hub, "model_file": path or null, "batch_size": n,
"samples": [{"src", "mt", "ref"}, ...]}. ANSWER becomes {"scores": [one number per sample],
"model": what scored, "version": of the package} or {"error": one line}. Lines on standard output
that begin with PROGRESS give the number of samples done. Without arguments the packages' versions
are printed, {"name": version}, and nothing is scored: a check that all can be imported.

-I keeps this folder off the import path, where comet.py would be taken for the package. Nothing
but the standard library is imported before a function needs it: comet.py imports this file too.
"""

import hashlib
import importlib.metadata
import json
import pathlib
import sys

PROGRESS = "comet progress:"
BATCHES_AT_ONCE = 32  # between two lines of progress; COMET sorts by length within
GPU_BYTES = 5 << 30  # of free memory; the process that trains may hold the rest


class NoModel(Exception):
    """The model cannot be had; the message says it all."""


def versions():
    import comet  # noqa: F401  the check
    import torch  # pyright: ignore[reportMissingImports]  in COMET's environment, not in ours

    return {
        "unbabel-comet": importlib.metadata.version("unbabel-comet"),
        "torch": torch.__version__,
    }


def find(model, model_file):
    """-> path of the checkpoint, and a name that changes when the model does."""
    from comet import download_model  # pyright: ignore[reportAttributeAccessIssue]  as torch

    if model_file:
        path = pathlib.Path(model_file)
        if path.is_dir():
            path = path / "checkpoints" / "model.ckpt"
        if not path.is_file():
            raise NoModel(f"no model at {path}")
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return path, f"{path.name}|sha256:{digest[:12]}"
    try:
        path = pathlib.Path(download_model(model))
    except KeyError as error:
        raise NoModel(
            f"{model} could not be downloaded from the Hugging Face hub: no network, no such "
            "model, or its licence is not accepted; Comet.model_file takes a local copy"
        ) from error
    folders = path.parts
    if "snapshots" in folders[:-1]:
        model += f"|revision:{folders[folders.index('snapshots') + 1][:12]}"
    return path, model


def score(request):
    import torch  # pyright: ignore[reportMissingImports]  in COMET's environment, not in ours
    from comet import load_from_checkpoint  # pyright: ignore[reportAttributeAccessIssue]  as torch

    path, name = find(request["model"], request["model_file"])
    model = load_from_checkpoint(str(path))
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
    samples, batch_size = request["samples"], request["batch_size"]
    scores = []
    for first in range(0, len(samples), BATCHES_AT_ONCE * batch_size):
        print(PROGRESS, first, flush=True)
        output = model.predict(
            samples[first : first + BATCHES_AT_ONCE * batch_size],
            batch_size=batch_size,
            gpus=int(free >= GPU_BYTES),
            progress_bar=False,
        )
        scores += [float(value) for value in output.scores]
    return {"scores": scores, "model": name, "version": versions()["unbabel-comet"]}


def main(request_path, answer_path):
    with open(request_path, encoding="utf-8") as file:
        request = json.load(file)
    try:
        answer = score(request)
    except NoModel as error:
        answer = {"error": str(error)}
    except Exception as error:
        text = " ".join(str(error).split())
        answer = {"error": f"{type(error).__name__}: {text}"}
    with open(answer_path, "w", encoding="utf-8") as file:
        json.dump(answer, file)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(json.dumps(versions()))
    else:
        main(*sys.argv[1:])
