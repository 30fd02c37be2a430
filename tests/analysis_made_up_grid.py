"""Writes a made-up study of several language pairs, mixtures, pools and seeds.

What a run measured is a function that the test gives, of (metric, pair, role of the data, D_p, pool
in examples, seed); None leaves the metric out. Data sets stop at slightly different D_p, as whole
batches make them.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np

from tests.analysis_made_up_study import SIGNATURES

SIZES = (0, *(100_000 * 2**k for k in range(7)))
POOLS = (1_000, 8_000, 60_000)
METRICS = ("cross_entropy", "bleu", "chrf")
UNRELATED = {"en-de": "fr", "en-fr": "de", "en-ro": "fr"}


def mixtures(pair, extra=("en-fr",)):
    """role -> (name, shares) of a pair; `extra`: pairs with 30/70 and 70/30 too."""
    source, target = pair.split("-")
    found = {
        "balanced": (f"techdoc_span_{source}50_{target}50", {source: 0.5, target: 0.5}),
        "source only": (f"techdoc_span_{source}", {source: 1.0}),
        "target only": (f"techdoc_span_{target}", {target: 1.0}),
        "unrelated": (f"techdoc_span_{UNRELATED[pair]}", {UNRELATED[pair]: 1.0}),
    }
    if pair in extra:
        for a in (30, 70):
            shares = {source: a / 100, target: 1 - a / 100}
            name = f"techdoc_span_{source}{a}_{target}{100 - a}"
            found[f"mixed {a}:{100 - a}"] = (name, shares)
    return found


def noise(scale, *place):
    """Normal, and the same for the same place."""
    return scale * np.random.default_rng(zlib.crc32(repr(place).encode())).standard_normal()


def cross_entropy(pair, role, size, pool, scale=1.0):
    """A power law with floor, weaker for data that match less and for larger pools."""
    alpha = {"balanced": 0.30, "target only": 0.28, "source only": 0.17, "unrelated": 0.10}
    start = 6.6 - 0.35 * math.log10(pool / 1_000)
    if not size:
        return start
    steepness = alpha.get(role, 0.29) * scale * (1 - 0.25 * math.log10(pool / 1_000))
    return start - 2.6 * (1 - (1 + size / 60_000) ** -steepness)


def ordinary(metric, pair, role, size, pool, seed):
    """What a study could show that reproduces most claims."""
    at = (metric, pair, role, size, pool, seed)
    loss = cross_entropy(pair, role, size, pool)
    if metric == "cross_entropy":
        return loss + noise(0.012, *at)
    if metric == "brevity_penalty":
        return 1.0 if size > 100_000 else 0.99
    bleu = 38 * math.exp(-0.95 * (loss - 3.6))
    if pair == "en-fr" and role in ("source only", "unrelated") and size:
        k = round(math.log2(size / 100_000))
        bleu = 3.4 + (1.6 if k % 2 else -1.2) - 0.12 * k
    bleu = max(bleu + noise(0.12, *at), 0.05)
    return {"bleu": bleu, "bleu_intl": bleu * 1.02, "chrf": 10 + 2 * bleu}[metric]


def write_grid(
    folder: Path, value=ordinary, *, pairs=("en-de", "en-fr", "en-ro"), roles=None, sizes=SIZES,
    pools=POOLS, seeds=(0,), end_seeds=(0, 1), metrics=METRICS, steps=2_000, extra=("en-fr",),
    model="tiny", left_out=lambda pair, role, size, pool: False,
) -> Path:  # fmt: skip
    """One finished run per point; `end_seeds` at D_p = 0 and at the largest."""
    pretrained = {}
    for pair in pairs:
        data = mixtures(pair, extra)
        for role, (name, shares) in data.items():
            if roles and role not in roles:
                continue
            for size in sizes:
                if not size and role != next(iter(data)) and (not roles or role != roles[0]):
                    continue
                for pool in pools:
                    if left_out(pair, role, size, pool):
                        continue
                    for seed in end_seeds if size in (0, max(sizes)) else seeds:
                        place = (pair, role, size, pool, seed)
                        _finetune(folder, value, place, name, shares, metrics, steps, model)
            if max(sizes):
                pretrained[name] = shares
    for name, shares in sorted(pretrained.items()):
        record = {
            "study": "grid", "id": f"pretrain/{model}/{name}", "kind": "pretrain", "model": model,
            "parameters": 2_891_136, "pretrain_data": name, "pretrain_languages": shares,
            "steps": max(sizes) // 4096,
        }  # fmt: skip
        timing = {"step": record["steps"], "wall_s": 5000.0, "device_s": 5000.0}
        _write(folder, record, [], timing)
    return folder


def _finetune(folder, value, place, name, shares, metrics, steps, model):
    pair, role, size, pool, seed = place
    task = f"techdoc_translate_{pair.replace('-', '_')}"
    tokens = size + (sum(map(ord, name)) % 9) * 64 if size else 0
    data = name if size else None
    record = {
        "study": "grid", "id": f"finetune/{model}/{data}/dp={size}/{task}/df={pool}/seed={seed}",
        "kind": "finetune", "model": model, "parameters": 2_891_136, "pretrain_data": data,
        "pretrain_languages": shares if size else {}, "pretrain_tokens": tokens,
        "pretrain_steps": tokens // 4096, "task": task, "languages": pair.split("-"),
        "finetune_tokens": 47 * pool, "finetune_examples": pool, "finetune_rows": pool // 2,
        "finetune_positions": 128 * pool, "finetune_pool": f"{pool}", "learning_rate": 0.005,
        "seed": seed, "batch_size": 32, "steps": steps,
    }  # fmt: skip
    lines = []
    for split in ("validation", "test"):
        line = {"step": steps, "split": split, "task": task}
        for metric in metrics:
            measured = value(metric, pair, role, size, pool, seed)
            if measured is not None:
                line[metric] = float(measured)
                if metric != "cross_entropy":
                    line[f"{metric}_signature"] = SIGNATURES.get(metric, "tok:intl")
        penalty = value("brevity_penalty", pair, role, size, pool, seed)
        if penalty is not None:
            line["brevity_penalty"] = float(penalty)
        lines.append(line)
    _write(folder, record, lines, {"step": steps, "wall_s": 400.0, "device_s": 400.0})


def _write(folder: Path, record, lines, timing) -> None:
    run = folder / "runs" / record["id"]
    run.mkdir(parents=True, exist_ok=True)
    (run / "run.json").write_text(json.dumps(record))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "timing.jsonl").write_text(json.dumps(timing) + "\n")
    (run / "DONE").write_text("{}")
