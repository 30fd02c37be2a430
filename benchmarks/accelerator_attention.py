"""The part `attention` of accelerator.py: each backend of t5scaling.model.attention by itself."""

import dataclasses
from collections.abc import Callable
from typing import Any

import accelerator_tools as tools

BACKENDS = ("plain", "cudnn", "fused")
CHECKED_ROWS = 4  # rows of the float32 reference, whose logits for all rows would not fit


@dataclasses.dataclass(frozen=True)
class Case:
    """Shapes of one attention: B rows, H heads of D, T queries, S keys."""

    name: str
    B: int
    H: int
    T: int
    S: int
    D: int
    causal: bool = False
    bias: bool = True

    @property
    def forward_flops(self) -> int:
        """Two products of 2 T S D; causal attention is counted in full."""
        return 4 * self.B * self.H * self.T * self.S * self.D


CASES = (
    Case("encoder 512", 64, 12, 512, 512, 64),
    Case("encoder 2048", 16, 12, 2048, 2048, 64),
    Case("head_dim 128", 32, 16, 512, 512, 128),
    Case("cross", 64, 12, 114, 512, 64, bias=False),
    Case("causal", 64, 12, 114, 114, 64, causal=True),
)
REHEARSAL = (Case("rehearsal", 4, 2, 8, 16, 16),)


def attention(bench: tools.Bench) -> None:
    """Milliseconds, memory, errors and exactness of every case, rows and backend."""
    cases = bench.chosen(REHEARSAL if bench.rehearse else CASES)
    kinds = [(case, packed) for case in cases for packed in (False, True)]
    # Backends in turn: should one of them break the device, those before it are recorded.
    variants = [
        (case, packed, backend)
        for backend in BACKENDS
        for case, packed in kinds
        if not (packed and backend == "cudnn")
    ]
    programs = [_lower_reference(*kind) for kind in kinds]
    for variant in variants:
        programs += [_lower_forward(*variant), _lower_both(*variant)]
    compiled = [program for program, _ in tools.compile_together(programs)]
    references = dict(zip(kinds, compiled, strict=False))
    exact: dict[tuple[Case, bool], Any] = {}
    pairs = iter(compiled[len(kinds) :])
    for case, packed, backend in variants:
        forward, both = next(pairs), next(pairs)
        names = {"case": case.name, "packed": packed, "backend": backend}
        try:
            for program in (forward, both, references[case, packed]):
                if isinstance(program, Exception):
                    raise program
            if (case, packed) not in exact:
                few = _few(*_arrays(case, packed))
                exact[case, packed] = references[case, packed](*few)
            with bench.alone():
                found = _measure(case, packed, forward, both, exact[case, packed])
        except Exception as error:
            bench.failed("attention", error, **names)
        else:
            bench.record("attention", **names, **found)


def _measure(case: Case, packed: bool, forward: Any, both: Any, exact: Any) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    inputs, segments, do_BxTxHxD = _arrays(case, packed)
    forward_ms, _ = tools.timed_on_device(lambda: forward(inputs, segments))
    ms, spread = tools.timed_on_device(lambda: both(inputs, segments, do_BxTxHxD))
    # Only the checked rows have a part in the bias's gradient, a sum over rows.
    do_BxTxHxD = do_BxTxHxD.at[CHECKED_ROWS:].set(0)
    out, gradients = both(inputs, segments, do_BxTxHxD)
    again = both(inputs, segments, do_BxTxHxD)
    pairs = zip(jax.tree.leaves((out, gradients)), jax.tree.leaves(again), strict=True)
    repeats = all(bool(jnp.array_equal(a, b)) for a, b in pairs)
    tokens_BxTx1x1 = (segments["query"] > 0)[:CHECKED_ROWS, :, None, None]
    exact_out, exact_gradients = exact
    errors = {"out": _error(out[:CHECKED_ROWS] * tokens_BxTx1x1, exact_out * tokens_BxTx1x1)}
    for name, expected in exact_gradients.items():
        found = gradients[name] if name == "bias" else gradients[name][:CHECKED_ROWS]
        errors[f"d{name}"] = _error(found, expected)
    return {
        "shape": f"B{case.B} H{case.H} T{case.T} S{case.S} D{case.D}",
        "forward_ms": forward_ms,
        "ms": ms,
        "spread_ms": spread,
        "forward_tflops": case.forward_flops / forward_ms / 1e9,
        "tflops": 3 * case.forward_flops / ms / 1e9,
        "temp_mib": both.memory_analysis().temp_size_in_bytes / 2**20,
        "repeats": repeats,
        **errors,
    }


def _error(found: Any, expected: Any) -> float:
    """Norm of the difference over that of what is expected."""
    import jax.numpy as jnp

    found, expected = found.astype(jnp.float32), expected.astype(jnp.float32)
    return float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))


def _arrays(case: Case, packed: bool) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """-> ({q, k, v, bias?}, {query, key} segments, gradient of the output); logits vary by 1.

    Outputs at padding mean nothing: they have no gradient.
    """
    import jax
    import jax.numpy as jnp

    def normal(seed: int, *shape: int) -> jax.Array:
        return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)

    queries, keys = (case.B, case.T, case.H, case.D), (case.B, case.S, case.H, case.D)
    inputs = {
        "q": normal(0, *queries) * case.D**-0.5,
        "k": normal(1, *keys),
        "v": normal(2, *keys),
    }
    if case.bias:
        inputs["bias"] = normal(3, case.H, case.T + case.S - 1).astype(jnp.float32)
    key_segments = jnp.asarray(tools.segments(case.B, case.S, packed))
    if case.causal and not packed:  # padding comes after all tokens and needs no mask
        key_segments = jnp.ones_like(key_segments)
    query_segments = jnp.ones((case.B, case.T), jnp.int32)
    if packed:
        query_segments = jnp.asarray(tools.segments(case.B, case.T, packed))
    do_BxTxHxD = normal(4, *queries) * (query_segments > 0)[:, :, None, None]
    return inputs, {"query": query_segments, "key": key_segments}, do_BxTxHxD


def _few(inputs: Any, segments: Any, do_BxTxHxD: Any) -> tuple[Any, Any, Any]:
    """The checked rows, in float32."""
    import jax
    import jax.numpy as jnp

    def cut(x: jax.Array) -> jax.Array:
        return x[:CHECKED_ROWS].astype(jnp.float32)

    few = {name: x if name == "bias" else cut(x) for name, x in inputs.items()}
    segments = {name: x[:CHECKED_ROWS] for name, x in segments.items()}
    return few, segments, cut(do_BxTxHxD)


def _attend(case: Case, packed: bool, backend: str) -> Callable[[Any, Any], Any]:
    import jax

    from t5scaling.model import attention, network
    from t5scaling.training import sharding

    def forward(inputs: dict[str, Any], segments: dict[str, Any]) -> Any:
        mask = attention.Mask(segments["query"], segments["key"], case.causal, packed)
        q, k, v, bias = (inputs.get(name) for name in ("q", "k", "v", "bias"))
        config = network.T5Config(
            1, 1, case.H, case.D, 1, 1, 1, dtype="bfloat16", attention=backend
        )
        with sharding.make_layout(devices=jax.devices()[:1]).constraints():
            return attention.attend(q, k, v, attention.share(config, mask, bias))

    return forward


def _forward_and_backward(case: Case, packed: bool, backend: str) -> Callable[[Any, Any, Any], Any]:
    import jax

    forward = _attend(case, packed, backend)

    def both(inputs: Any, segments: Any, do_BxTxHxD: Any) -> Any:
        out, back = jax.vjp(lambda inputs: forward(inputs, segments), inputs)
        return out, back(do_BxTxHxD)[0]

    return both


def _lower_forward(case: Case, packed: bool, backend: str) -> Callable[[], Any]:
    import jax

    def lower() -> Any:
        inputs, segments, _ = jax.eval_shape(lambda: _arrays(case, packed))
        return jax.jit(_attend(case, packed, backend)).lower(inputs, segments)

    return lower


def _lower_both(case: Case, packed: bool, backend: str) -> Callable[[], Any]:
    import jax

    def lower() -> Any:
        shapes = jax.eval_shape(lambda: _arrays(case, packed))
        return jax.jit(_forward_and_backward(case, packed, backend)).lower(*shapes)

    return lower


def _lower_reference(case: Case, packed: bool) -> Callable[[], Any]:
    import jax

    def lower() -> Any:
        shapes = jax.eval_shape(lambda: _few(*_arrays(case, packed)))
        with jax.default_matmul_precision("highest"):
            return jax.jit(_forward_and_backward(case, packed, "plain")).lower(*shapes)

    return lower
