"""The miniature that tests train: its examples, its model, and a call of the loop on them."""

import json
import pathlib
from typing import Any

import jax
import numpy as np

from t5scaling.data.examples import DataSpec
from t5scaling.model import network
from t5scaling.training import checkpoint, loop, optimizer, sharding, step

MODULES = ("tests.mini_tasks",)
SPAN = DataSpec("mini_span_en50_de50", "train", {"inputs": 64, "targets": 24}, modules=MODULES)
PAIRS = DataSpec(
    "mini_translate_en_de", "train", {"inputs": 64, "targets": 64}, pack=True, modules=MODULES
)
LONG = {"inputs": 160, "targets": 160}
VALIDATION = DataSpec("mini_translate_en_de", "validation", LONG, modules=MODULES)
TEST = DataSpec("mini_translate_en_de", "test", LONG, modules=MODULES)

STUDY = str(pathlib.Path(__file__).with_name("study.gin"))
# Its grid without the two smaller budgets: a pretraining, the baseline and a finetuning that are
# those of the whole study.
SMALL = {"study.Study.pretrain_tokens": "(0, 12_000)"}

CONFIG = network.T5Config(
    vocab_size=8192,
    emb_dim=32,
    num_heads=2,
    head_dim=16,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_dim=64,
    dropout_rate=0.1,
)


def study(study_dir: str | pathlib.Path, root: str, *extra: str) -> list[str]:
    """The arguments of run.py for the study of study.gin."""
    places = f"--gin.STUDY_DIR={study_dir}", f"--gin.EXAMPLES_ROOT={root}"
    return ["study", f"--gin_file={STUDY}", *places, *extra]


def results_of_small(study_dir: pathlib.Path) -> str:
    """What results.csv of the whole study says of the runs of SMALL."""
    rows = (study_dir / "results.csv").read_text().splitlines(keepends=True)
    kept = [row for row in rows if "/dp=3k/" not in row and "/dp=6k/" not in row]
    assert 1 < len(kept) < len(rows)
    return "".join(kept)


def train(model_dir: pathlib.Path, root: str, **changes: Any) -> None:
    """`loop.train` for a dozen steps of span corruption, without a progress bar."""
    arguments: dict[str, Any] = {
        "model_dir": str(model_dir),
        "model": CONFIG,
        "dataset": SPAN,
        "examples_root": root,
        "batch_size": 8,
        "train_steps": 12,
        "learning_rate_schedule": optimizer.constant(0.01),
        "objective": step.Objective(),
        "log_every": 5,
        "progress": lambda *_: None,
    }
    loop.train(**{**arguments, **changes})


def lines(model_dir: pathlib.Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (model_dir / name).read_text().splitlines()]


def parameters(model_dir: pathlib.Path, at_step: int) -> dict[str, np.ndarray]:
    """Path -> values of the parameters in a checkpoint."""
    abstract = step.abstract_params(CONFIG, sharding.make_layout())
    path = model_dir / "checkpoints" / f"{checkpoint.PREFIX}_{at_step}"
    params = checkpoint.restore_params(str(path), abstract)
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree.leaves_with_path(params)}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Whether two parameter trees are equal bit for bit."""
    return a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)
