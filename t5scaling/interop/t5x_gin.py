"""A training as gin text of stock T5X (google-research/t5x, commit cc342d4): all that its
`t5x.train` reads, with no file of T5X's included.

The examples are handed over in the order of our own loop by `t5scaling.data.as_seqio`, which T5X's
process imports. What T5X has no word for is refused by `check`. Two things differ from our trainer
and cannot be seen in a file: T5X draws its initial weights and its dropout from its own streams.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from t5scaling.errors import UserError
from t5scaling.model.config import T5Config

REAL_TOKENS, ALL_POSITIONS = "NUM_REAL_TARGET_TOKENS", "NUM_TOTAL_TARGET_TOKENS"
# An `Objective`'s loss_normalizing_factor -> T5X's name.
NORMALIZERS = {
    "target_tokens": REAL_TOKENS, REAL_TOKENS: REAL_TOKENS, ALL_POSITIONS: ALL_POSITIONS
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Training:
    """What T5X is asked to do.

    Attributes:
        model_dir: T5X's own: checkpoint_<step> and its event files.
        model: architecture.
        examples: directory of the examples.
        feature_lengths: tokens of a row, for inputs and targets; packed: whether rows are packed.
        batch_size: rows of a step.
        rows: the first of the examples, D_f; a run goes through them again and again.
        shuffle, seed: of their order, and the seed of initialisation and dropout.
        first_step: 0, or the step of the checkpoint in `model_dir` from which T5X will go on.
        last_step: steps in all, of this run alone.
        factors, rate, warmup_steps: as T5X's `create_learning_rate_scheduler` has them.
        z_loss, label_smoothing, loss_normalizing_factor: as of `Objective`.
        microbatches: parts in which a batch is done.
        mesh_shape: sizes of data, fsdp and model.
        initial_checkpoint: its parameters are the first ones; the optimizer and the step begin
            anew, as in our own trainer. None: random weights.
        checkpoint_steps: steps whose checkpoints are wanted, beside the last.
        checkpoint_every: steps between those from which a killed run goes on.
        log_every: steps between lines of metrics.
    """

    model_dir: str
    model: T5Config
    examples: str
    feature_lengths: Mapping[str, int]
    packed: bool
    batch_size: int
    rows: int
    shuffle: bool
    seed: int
    first_step: int
    last_step: int
    factors: str
    rate: float
    warmup_steps: int
    z_loss: float
    label_smoothing: float
    loss_normalizing_factor: float | str | None
    microbatches: int
    mesh_shape: Mapping[str, int]
    initial_checkpoint: str | None
    checkpoint_steps: Sequence[int]
    checkpoint_every: int
    log_every: int


@dataclasses.dataclass(frozen=True)
class Partition:
    """A mesh in the words of T5X's partitioner.

    Attributes:
        model: devices that share heads, MLP and vocabulary (num_partitions).
        parameter_dims: 2 where the devices that share the rows share the parameters too.
        devices: in all; None for as many as there are.
    """

    model: int
    parameter_dims: int
    devices: int | None


def partition(mesh_shape: Mapping[str, int] | None) -> Partition:
    """MESH_SHAPE for T5X. Raises UserError for one that its partitioner cannot be given."""
    shape = {"data": -1, "fsdp": 1, "model": 1} | dict(mesh_shape or {})
    data, fsdp, model = (shape[axis] for axis in ("data", "fsdp", "model"))
    if model < 1:
        raise UserError(f'MESH_SHAPE={shape}: T5X needs the number of devices of "model", not -1')
    if fsdp != 1 and data != 1:
        raise UserError(
            f"MESH_SHAPE={shape}: T5X has one axis for rows, which shares the parameters or does "
            f'not; nearest it can do: {{"data": 1, "fsdp": {fsdp}, "model": {model}}}'
        )
    rows = data if fsdp == 1 else fsdp
    return Partition(model, 1 if fsdp == 1 else 2, None if rows == -1 else rows * model)


def check(model: T5Config, mesh_shape: Mapping[str, int] | None, normalizer: Any) -> None:
    """Raises UserError for what stock T5X cannot do.

    SCAN_LAYERS, ATTENTION and STEPS_PER_CALL change no number, and T5X does without them.
    """
    if model.remat != "none":
        raise UserError(
            f"REMAT_POLICY={model.remat!r}: T5X's T5 keeps all activations; expected 'none'"
        )
    if isinstance(normalizer, str) and normalizer not in NORMALIZERS:
        raise UserError(
            f"loss_normalizing_factor is {normalizer!r}, under which T5X does not say what a "
            f"target token's loss is; expected None, a number, {REAL_TOKENS} or {ALL_POSITIONS}"
        )
    partition(mesh_shape)


def text(training: Training) -> str:
    """The gin file. Raises UserError as `check`."""
    check(training.model, training.mesh_shape, training.loss_normalizing_factor)
    model, mesh = training.model, partition(training.mesh_shape)
    data = "_segment_ids", "_positions"
    lengths = dict(training.feature_lengths)
    if training.packed:
        lengths |= {f"{name}{kind}": n for name, n in lengths.items() for kind in data}
    converter = "PrePackedEncDecFeatureConverter" if training.packed else "EncDecFeatureConverter"
    normalizer = training.loss_normalizing_factor
    restore: dict[str, Any] = {"path": []}
    if training.initial_checkpoint is not None:
        restore = {
            "path": training.initial_checkpoint,
            "mode": "specific",
            "dtype": "float32",
            # The parameters alone; what a run resumes from is left as it is.
            "assignment_map": (("state.*", None),),
            "fallback_to_scratch": True,
        }
    sections: list[tuple[str, dict[str, Any]]] = [
        (
            "train_script.train",
            {
                "model": Gin("@models.EncoderDecoderModel()"),
                "train_dataset_cfg": Gin("@utils.DatasetConfig()"),
                "train_eval_dataset_cfg": None,
                "infer_eval_dataset_cfg": None,
                "checkpoint_cfg": Gin("@utils.CheckpointConfig()"),
                "partitioner": Gin("@partitioning.PjitPartitioner()"),
                "trainer_cls": Gin("@trainer.Trainer"),
                "model_dir": training.model_dir,
                "total_steps": training.last_step,
                "eval_steps": 0,
                "eval_period": training.last_step,
                "stats_period": training.log_every,
                "random_seed": training.seed,
                "summarize_config_fn": Gin("@gin_utils.summarize_gin_config"),
            },
        ),
        (
            "utils.DatasetConfig",
            {
                "mixture_or_task_name": Gin("@as_seqio.register()"),
                "task_feature_lengths": lengths,
                "split": "train",
                "batch_size": training.batch_size,
                "shuffle": False,
                "seed": training.seed,
                "use_cached": False,
                "pack": False,
            },
        ),
        (
            "as_seqio.register",
            {
                "examples": training.examples,
                "batch_size": training.batch_size,
                "first_step": training.first_step,
                "last_step": training.last_step,
                "rows": training.rows,
                "seed": training.seed,
                "shuffle": training.shuffle,
                "devices": mesh.devices,
            },
        ),
        ("as_seqio.vocabulary", {"examples": training.examples}),
        (
            "models.EncoderDecoderModel",
            {
                "module": Gin("@network.Transformer()"),
                "input_vocabulary": Gin("@as_seqio.vocabulary()"),
                "output_vocabulary": Gin("@as_seqio.vocabulary()"),
                "optimizer_def": Gin("@adafactor.Adafactor()"),
                "feature_converter_cls": Gin(f"@seqio.{converter}"),
                "z_loss": training.z_loss,
                "label_smoothing": training.label_smoothing,
                "loss_normalizing_factor": (
                    NORMALIZERS[normalizer] if isinstance(normalizer, str) else normalizer
                ),
            },
        ),
        ("network.Transformer", {"config": Gin("@network.T5Config()")}),
        (
            "network.T5Config",
            {
                "vocab_size": model.vocab_size,
                "dtype": model.dtype,
                "emb_dim": model.emb_dim,
                "num_heads": model.num_heads,
                "num_encoder_layers": model.num_encoder_layers,
                "num_decoder_layers": model.num_decoder_layers,
                "head_dim": model.head_dim,
                "mlp_dim": model.mlp_dim,
                "mlp_activations": tuple(model.mlp_activations),
                "dropout_rate": model.dropout_rate,
                "logits_via_embedding": model.logits_via_embedding,
            },
        ),
        (
            "adafactor.Adafactor",
            {
                "decay_rate": 0.8,
                "step_offset": 0,
                "logical_factor_rules": Gin("@adafactor.standard_logical_factor_rules()"),
            },
        ),
        (
            "trainer.Trainer",
            {
                "num_microbatches": training.microbatches if training.microbatches > 1 else None,
                "learning_rate_fn": Gin("@utils.create_learning_rate_scheduler()"),
            },
        ),
        (
            "utils.create_learning_rate_scheduler",
            {
                "factors": training.factors,
                "base_learning_rate": training.rate,
                "warmup_steps": training.warmup_steps,
            },
        ),
        (
            "partitioning.PjitPartitioner",
            {
                "num_partitions": mesh.model,
                "logical_axis_rules": Gin("@partitioning.standard_logical_axis_rules()"),
            },
        ),
        (
            "partitioning.standard_logical_axis_rules",
            {"parameter_partitioning_dims": mesh.parameter_dims},
        ),
        (
            "utils.CheckpointConfig",
            {
                "restore": Gin("@utils.RestoreCheckpointConfig()"),
                "save": Gin("@utils.SaveCheckpointConfig()"),
            },
        ),
        ("utils.RestoreCheckpointConfig", restore),
        (
            "utils.SaveCheckpointConfig",
            {
                "period": training.checkpoint_every,
                "checkpoint_steps": sorted(training.checkpoint_steps),
                "dtype": "float32",
                "save_dataset": False,
            },
        ),
    ]
    return _HEAD + "".join(_section(name, values) for name, values in sections)


_HEAD = """\
# Written anew each time T5X is started on this run.
from __gin__ import dynamic_registration

import __main__ as train_script
import seqio
from t5scaling.data import as_seqio
from t5x import adafactor
from t5x import gin_utils
from t5x import models
from t5x import partitioning
from t5x import trainer
from t5x import utils
from t5x.examples.t5 import network
"""


class Gin(str):
    """A value that is gin text already: a reference."""


def _section(name: str, values: Mapping[str, Any]) -> str:
    lines = [f"  {k} = {v if isinstance(v, Gin) else repr(v)}" for k, v in values.items()]
    return "\n".join(["", f"{name}:", *lines, ""])
