"""The smallest change that makes a train step fit: an estimate sorts and filters the changes, the
compiler confirms one.

Changes are tried in this order:

0. on a GPU, a larger share of its memory for JAX, which by default takes three quarters;
1. remat: "minimal" computes again what lies between matrix products, "full" a layer's forward
   pass, about a third more work;
2. fsdp: parameters, optimizer and gradients split over more devices, which send them about;
3. microbatches: a batch done in more parts, each with less work for a device to do at once;
4. model: heads, MLP and vocabulary split too, with exchanges in every layer;
5. a larger slice, or more GPUs.

Of 1 to 5, each is tried with all combinations of those before it, so the first that fits leaves
the most of what was asked for as it was. It need not be the fastest: a larger "fsdp" may allow a
lighter remat.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping

import jax

from t5scaling.errors import UserError
from t5scaling.model import attention
from t5scaling.model import loss as loss_lib
from t5scaling.model.config import REMAT
from t5scaling.study import gpus, topologies
from t5scaling.study.ahead_of_time import Compiled, Program

COMPILATIONS = 6  # that a search may ask for: seconds each where it does not fit, else minutes
# A program estimated at more than this many times the memory is not worth asking the compiler,
# which was seen to need from 0.4 (TPU, remat "full") to 1.15 times the estimate (H100: 1.13).
_DOUBT = 2.5
_MICROBATCHES = 64  # more parts than this are no small change

Compile = Callable[[Program, topologies.Topology | None], Compiled]


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """A program that fits, on the topology asked for or on a larger one.

    Attributes:
        program, topology: what to compile, for what.
        changes: parameter -> its new value, e.g. {"REMAT_POLICY": "full"}; "topology", and the
            environment variable that sets a GPU's share of memory, are named among them.
        estimated_bytes: of one device, by `estimate`.
        compiled: the compiler's confirmation; None where the search's limit was reached before,
            so that the suggestion is only an estimate.
    """

    program: Program
    topology: topologies.Topology | None
    changes: Mapping[str, object]
    estimated_bytes: float
    compiled: Compiled | None


def search(
    program: Program,
    topology: topologies.Topology | None,
    found: Compiled,
    compile_program: Compile,
    compilations: int = COMPILATIONS,
) -> Suggestion | None:
    """The first change, in the order above, that the compiler finds to fit.

    Args:
        program, topology: what does not fit.
        found: the compiler's answer to them.
        compile_program: asks the compiler.
        compilations: how often it may be asked; after that the first change whose estimate fits
            is returned unconfirmed.

    Returns None if no change fits, by estimate.
    """
    as_it_is = _larger_share(program, topology, found)
    if as_it_is:
        return as_it_is
    for candidate, where, changes in _candidates(program, topology, found):
        platform = where.platform if where else jax.default_backend()
        size = estimate(candidate, platform)
        if size > (_DOUBT if compilations else 1.0) * found.memory_bytes:
            continue
        if not compilations:
            return Suggestion(candidate, where, changes, size, None)
        try:
            compiled = compile_program(candidate, where)
        except UserError:  # rules of the user's own may forbid this mesh
            continue
        compilations -= 1
        if compiled.fits:
            return Suggestion(candidate, where, changes, size, compiled)
    return None


def _larger_share(
    program: Program, topology: topologies.Topology | None, found: Compiled
) -> Suggestion | None:
    """The program as it is, if it fits a GPU of whose memory JAX takes the largest share."""
    memory = int(gpus.LARGEST_FRACTION * (found.whole_memory_bytes or 0))
    if found.refused or memory <= found.memory_bytes or found.total_bytes > memory:
        return None
    changes = {gpus.fraction_variable(): gpus.LARGEST_FRACTION}
    with_more = dataclasses.replace(found, memory_bytes=memory)
    return Suggestion(program, topology, changes, found.total_bytes, with_more)


def _candidates(
    program: Program, topology: topologies.Topology | None, found: Compiled
) -> Iterator[tuple[Program, topologies.Topology | None, dict[str, object]]]:
    """Programs with explicit meshes, smallest change first; those that cannot be split are out."""
    before = (program.config.remat, dict(found.mesh), program.microbatches)
    remats = list(REMAT)[list(REMAT).index(program.config.remat) :]
    parts = [n for n in _doublings(program.microbatches) if n <= _MICROBATCHES]
    fsdps, models = _doublings(found.mesh["fsdp"]), _doublings(found.mesh["model"])
    for where in [topology, *topology.larger()] if topology else [None]:
        larger = {} if where is None or where == topology else {"topology": where.name}
        devices = where.devices if where else found.devices
        for model, microbatches, fsdp, remat in itertools.product(models, parts, fsdps, remats):
            mesh = _mesh(devices, fsdp, model)
            if mesh is None or (not larger and (remat, mesh, microbatches) == before):
                continue
            candidate = _changed(program, remat, mesh, microbatches)
            if _divides(candidate):
                yield candidate, where, larger | _changes(before, remat, mesh, microbatches)


def _doublings(first: int) -> list[int]:
    return [first * 2**n for n in range(14)]  # beyond the largest slice


def _mesh(devices: int, fsdp: int, model: int) -> dict[str, int] | None:
    if devices % (fsdp * model):
        return None
    return {"data": devices // (fsdp * model), "fsdp": fsdp, "model": model}


def _changed(program: Program, remat: str, mesh: dict[str, int], microbatches: int) -> Program:
    config = dataclasses.replace(program.config, remat=remat)
    return dataclasses.replace(program, config=config, mesh_shape=mesh, microbatches=microbatches)


def _changes(
    before: tuple[str, dict[str, int], int], remat: str, mesh: dict[str, int], microbatches: int
) -> dict[str, object]:
    named = zip(
        ("REMAT_POLICY", "MESH_SHAPE", "MICROBATCHES"),
        before,
        (remat, mesh, microbatches),
        strict=True,
    )
    return {name: new for name, old, new in named if new != old}


def _divides(program: Program) -> bool:
    """Whether the default sharding rules can split the program over its mesh."""
    config, mesh = program.config, program.mesh_shape
    assert mesh is not None
    by_model = (config.num_heads, config.mlp_dim, config.vocab_size)
    return (
        program.batch_size % (mesh["data"] * mesh["fsdp"] * program.microbatches) == 0
        and config.emb_dim % mesh["fsdp"] == 0
        and all(size % mesh["model"] == 0 for size in by_model)
    )


def estimate(program: Program, platform: str) -> float:
    """Bytes that a step takes on one device, roughly: to order candidates, not to be reported as
    what a program needs.

    Counted are parameters, gradients (twice with microbatches) and a gathered layer; what each
    layer keeps for the backward pass; one layer's work; and the loss: its chunk of logits, and
    the output matrix and its gradient, or the rows, brought together over "fsdp", whichever is
    less. Adafactor's state is small beside them. The mesh must name its three sizes. `platform`, of
    the devices: "cpu", "gpu" or "tpu".
    """
    config, mesh = program.config, program.mesh_shape
    assert mesh is not None
    fsdp, model = mesh["fsdp"], mesh["model"]
    rows = program.batch_size / (mesh["data"] * fsdp * program.microbatches)
    S, T = program.input_length, program.target_length
    E, M, V = config.emb_dim, config.mlp_dim / model, config.vocab_size / model
    H, J = config.num_heads / model, config.num_heads * config.head_dim / model
    act = 2 if config.dtype == "bfloat16" else 4
    backend, _ = attention.choose(config, platform=platform, packed=program.packed)
    branches = len(config.mlp_activations)
    mlp = (branches + 1) * E * M
    encoder, decoder = 4 * E * J + mlp, 8 * E * J + mlp
    embeddings = E * V * (1 if config.logits_via_embedding else 2)
    whole = config.num_encoder_layers * encoder + config.num_decoder_layers * decoder + embeddings
    gradients = 2 if program.microbatches > 1 else 1
    state = 4 * whole / fsdp * (1 + gradients)

    def kept(remat: str, length: int, attentions: int, scores: float) -> float:
        """The bytes of one layer: its input, then its matrix products, then everything."""
        if remat == "full":
            return rows * length * E * act
        products = attentions * (3 * J + E) + branches * M + 2 * E
        if remat == "minimal":
            return rows * length * products * act
        between = attentions * (J + 2 * E) + (branches + 1) * M + 3 * E
        # Scores stay in float32 (softmax), and once more as the weights of the values.
        in_scores = rows * H * scores * (4 + act) if backend == "plain" else 0.0
        return rows * length * (products + between) * act + in_scores

    def layers(remat: str) -> tuple[float, float]:
        return kept(remat, S, 1, S * S), kept(remat, T, 2, T * T + T * S)

    in_encoder, in_decoder = layers(config.remat)
    activations = config.num_encoder_layers * in_encoder + config.num_decoder_layers * in_decoder
    working = 2 * max(layers("none")) + 8 * rows * H * S * S  # and the bias with its gradient
    gathered = (4 + act) * max(encoder, decoder) if fsdp > 1 else 0.0
    at_a_time = program.objective.chunk_positions
    at_a_time = at_a_time or loss_lib.positions_at_a_time(platform, config.vocab_size)
    chunk = 3 * 4 * V * min(at_a_time, rows * T)
    together = rows * fsdp * T  # positions of the devices that split a parameter
    matrix, moved = (V / fsdp, together) if together < config.vocab_size else (V, 0)
    loss_bytes = chunk + (4 + act) * E * (matrix + moved)
    return state + activations + max(working + gathered, loss_bytes)
