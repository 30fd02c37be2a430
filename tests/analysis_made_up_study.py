"""Writes the run directories of a made-up study, with numbers like those of a first small one."""

import json
from pathlib import Path

SIZES = (0, 78_336, 152_064, 303_104, 602_112, 1_200_128, 2_400_256)
CROSS_ENTROPY = {
    1_000: (6.52, 6.46, 6.40, 6.24, 6.02, 5.69, 5.34),
    10_000: (6.19, 6.11, 6.06, 5.95, 5.76, 5.47, 5.16),
}
BLEU = {
    1_000: (0.09, 0.04, 0.11, 0.07, 0.18, 0.05, 0.13),
    10_000: (0.08, 0.12, 0.06, 0.15, 0.09, 0.14, 0.07),
}
CHRF = {
    1_000: (5.0, 6.3, 3.2, 9.8, 6.0, 7.5, 4.4),
    10_000: (7.1, 4.2, 8.8, 5.1, 9.3, 3.9, 6.6),
}
SIGNATURES = {"bleu": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.5.1",
              "chrf": "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.5.1"}  # fmt: skip
DATA = "techdoc_span_en50_de50"
TASK = "techdoc_translate_en_de"


def write_study(
    study_dir: Path,
    *,
    sizes=SIZES,
    pools=(1_000, 10_000),
    rates=(0.005, 0.01),
    seeds=(0,),
    cross_entropy=CROSS_ENTROPY,
    bleu=BLEU,
    chrf=CHRF,
) -> Path:
    """One finished run per (size, pool, rate, seed); the first rate is the best by validation."""
    for place, tokens in enumerate(sizes):
        for pool in pools:
            for rank, rate in enumerate(rates):
                for seed in seeds:
                    shift = 0.2 * rank + 0.01 * seed
                    write_run(
                        study_dir, tokens, pool, rate, seed,
                        cross_entropy=cross_entropy[pool][place] + shift,
                        bleu=bleu[pool][place], chrf=chrf[pool][place],
                    )  # fmt: skip
    if any(sizes):
        pretrain = study_dir / "runs" / "pretrain" / "en50_de50"
        pretrain.mkdir(parents=True)
        record = {
            "study": "quick", "id": "pretrain/en50_de50", "kind": "pretrain", "model": "tiny",
            "parameters": 2_891_136, "pretrain_data": DATA, "steps": 600,
        }  # fmt: skip
        (pretrain / "run.json").write_text(json.dumps(record))
        lines = [{"step": 600, "split": "train", "task": DATA, "loss": 5.5, "tokens_seen": 2457600}]
        _write_lines(pretrain / "metrics.jsonl", lines)
        (pretrain / "DONE").write_text("{}")
    return study_dir


def write_run(
    study_dir: Path, tokens, pool, rate, seed, *, cross_entropy, bleu=0.1, chrf=5.0,
    done=True, failure=None,
) -> Path:  # fmt: skip
    data = "en50_de50" if tokens else "none"
    run_id = f"finetune/{data}/dp={tokens}/{TASK}/df={pool}/lr={rate:g}/seed={seed}"
    folder = study_dir / "runs" / run_id
    folder.mkdir(parents=True)
    record = {
        "study": "quick", "id": run_id, "kind": "finetune", "model": "tiny",
        "parameters": 2_891_136, "pretrain_data": DATA if tokens else None,
        "pretrain_languages": {"en": 0.5, "de": 0.5} if tokens else {},
        "pretrain_tokens": tokens, "pretrain_steps": tokens // 4096, "task": TASK,
        "languages": ["en", "de"], "finetune_tokens": 47 * pool, "finetune_examples": pool,
        "finetune_rows": pool, "finetune_positions": 128 * pool, "finetune_pool": f"{pool}",
        "learning_rate": rate, "seed": seed, "batch_size": 32,
        "steps": 120,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    lines = [{"step": 120, "split": "train", "task": TASK, "loss": 5.0, "tokens_seen": 180_000}]
    for split, offset in (("validation", 0.0), ("test", 0.03)):
        lines.append({
            "step": 120, "split": split, "task": TASK, "cross_entropy": cross_entropy + offset,
            "target_tokens": 26_294, "bleu": bleu, "bleu_signature": SIGNATURES["bleu"],
            "brevity_penalty": 1.0, "chrf": chrf, "chrf_signature": SIGNATURES["chrf"],
        })  # fmt: skip
    _write_lines(folder / "metrics.jsonl", lines)
    _write_lines(folder / "timing.jsonl", [{"step": 120, "wall_s": 50.0, "device_s": 48.0}])
    if done:
        (folder / "DONE").write_text('{"step": 120}')
    if failure is not None:
        (folder / "FAILED").write_text(json.dumps({"reason": failure}))
    return folder


def _write_lines(path: Path, lines) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
