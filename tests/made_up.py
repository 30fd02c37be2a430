"""Examples directories with content that a test chooses, made by the real writer without SeqIO."""

from pathlib import Path

import numpy as np

from t5scaling.data import runs, work, writer
from t5scaling.data.examples import FORMAT, DataSpec, Examples


def block_of(rows, text_tokens=None):
    """`rows`: (inputs, targets) of each example, lists of tokens."""
    index = np.zeros(len(rows), runs.INDEX)
    for place, sides in enumerate(rows):
        for name, tokens in zip(runs.FEATURES, sides, strict=True):
            index[name][place] = index[f"{name}_whole"][place] = len(tokens)
    index["text_tokens"] = text_tokens if text_tokens is not None else index["targets"]
    index["tokens_end"] = 4 * np.cumsum(index["inputs"] + index["targets"])
    tokens = np.concatenate([np.asarray(side, "<i4") for sides in rows for side in sides])
    return runs.Block(index, tokens.tobytes(), b"")


def write(path, rows, *, lengths, packed=False, text_tokens=None):
    """Writes `rows` in their order (packed by first fit) as the directory `path`; opens it."""
    path = Path(path)
    spec = DataSpec("made_up", "train", lengths, pack=packed, modules=())
    at = work.path_for(path)
    work.prepare(at, {})
    run = runs.RunWriter(at, "0")
    run.add(np.arange(len(rows), dtype=np.uint64), block_of(rows, text_tokens))
    run.flush()
    components = [{"task": "made_up", "rate": 1.0, "passes": [run.runs]}]
    mixture = writer.save_mixture(at, spec, components)
    for number in range(mixture.parts):
        writer.write_part(at, number)
    meta = {"format": FORMAT, "spec": spec.to_json()}
    writer.finish(at, path, meta, mixture, b"not looked at")
    return Examples(path)
