"""The fused TPU kernels: as array operations against the plain backend, and compiled for TPUs.

No test here runs on a TPU. The kernels' results are compared as JAX interprets them; that Mosaic
accepts them is tested where libtpu is installed.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5scaling.model import attention, attention_tpu, network
from t5scaling.model.layers import Placement, diagonals_to_matrix, placed
from t5scaling.study import ahead_of_time

HEADS = 2


def random_case(batch, queries, keys, dim, *, causal, packed, bias, dtype="float32"):
    """-> (q, k, v, bias), the mask, a gradient of the output."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    q, do = normal(batch, queries, HEADS, dim) / dim**0.5, normal(batch, queries, HEADS, dim)
    k, v = normal(batch, keys, HEADS, dim), normal(batch, keys, HEADS, dim)
    bias_HxC = jnp.asarray(rng.normal(size=(HEADS, queries + keys - 1)), jnp.float32)
    query_segments, key_segments = np.ones((batch, queries), int), np.ones((batch, keys), int)
    if packed:  # examples 1, 2, ... and padding; the keys' last example has no queries
        query_segments = np.sort(rng.integers(1, 4, (batch, queries)))
        key_segments = np.sort(rng.integers(1, 5, (batch, keys)))
        query_segments[:, -9:], key_segments[:, -7:] = 0, 0
        query_segments[:, 0] = 5  # sees no key
        if queries == keys:
            key_segments = query_segments
    elif not causal:
        key_segments[0, keys // 3 :] = 0  # all of row 0's second block of keys, and more
    segments = (jnp.asarray(x, jnp.int32) for x in (query_segments, key_segments))
    return (q, k, v, bias_HxC if bias else None), attention.Mask(*segments, causal, packed), do


def by_plain(q, k, v, bias_HxC, mask):
    queries, keys = q.shape[1], k.shape[1]
    bias = None if bias_HxC is None else diagonals_to_matrix(bias_HxC, queries, keys)
    return attention._plain(q, k, v, bias, mask)


def by_fused(tile):
    def attend(q, k, v, bias_HxC, mask):
        return attention_tpu.attend(
            q, k, v, bias_HxC, mask.query_segments_BxT, mask.key_segments_BxS,
            causal=mask.causal, packed=mask.packed, interpret=True, tiles=tile,
        )  # fmt: skip

    return attend


def output_and_gradients(attend, operands, mask, do, rows_BxT=True):
    """-> by name, as if only the queries `rows_BxT` had an output."""
    rows = jnp.asarray(rows_BxT)[..., None, None]

    def both(*operands):
        o, pull = jax.vjp(lambda *operands: attend(*operands, mask), *operands)
        return o * rows, *pull(do * rows.astype(do.dtype))

    with jax.default_matmul_precision("highest"):
        found = jax.jit(both)(*operands)
    named = zip(("o", "dq", "dk", "dv", "dbias"), found, strict=True)
    return {name: x for name, x in named if x is not None}


def errors(found, expected):
    """Of each array: the norm of the difference over the norm."""
    assert found.keys() == expected.keys()
    compared = {}
    for name in expected:
        assert found[name].shape == expected[name].shape, name
        assert found[name].dtype == expected[name].dtype, name
        mine, theirs = (np.asarray(x[name], np.float64) for x in (found, expected))
        compared[name] = np.linalg.norm(mine - theirs) / np.linalg.norm(theirs)
    return compared


def compare(given, tile):
    """Errors of the fused kernels; a query that sees no key has to have output 0, and no gradient.

    Plain spreads such a query's weights over all keys, so there its output is left out.
    """
    operands, mask, do = given
    shape = (*mask.query_segments_BxT.shape, mask.key_segments_BxS.shape[1])
    sees_any_BxT = jnp.broadcast_to(mask.visible(), shape).any(axis=2)
    found = output_and_gradients(by_fused(attention_tpu.Tile(*tile)), *given)
    return errors(found, output_and_gradients(by_plain, operands, mask, do, sees_any_BxT))


CASES = {  # batch, queries, keys, head dimension; the tile
    "encoder, padded": ((1, 300, 300, 64), (256, 128), dict(causal=False, packed=False, bias=True)),
    "decoder, padded": ((1, 140, 140, 128), (128, 128), dict(causal=True, packed=False, bias=True)),
    "decoder, packed": ((2, 140, 140, 64), (128, 128), dict(causal=True, packed=True, bias=True)),
    "cross, packed": ((2, 140, 50, 64), (128, 128), dict(causal=False, packed=True, bias=False)),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_plain_in_float32(name):
    sizes, tile, kind = CASES[name]
    found = compare(random_case(*sizes, **kind), tile)
    assert ("dbias" in found) == kind["bias"]
    assert max(found.values()) < 1e-6, found


def test_equals_plain_in_bfloat16_within_its_rounding():
    kind = {"causal": False, "packed": True, "bias": True, "dtype": "bfloat16"}
    found = compare(random_case(2, 150, 150, 64, **kind), (128, 256))
    assert max(found.values()) < 5e-3, found


@pytest.mark.parametrize(
    ("length", "most", "block"),
    [(1, 512, 128), (114, 512, 128), (512, 512, 512), (513, 512, 384), (2048, 512, 512)],
)
def test_blocks_leave_little_to_fill(length, most, block):
    assert attention_tpu._even(length, most) == block


def test_a_tpu_has_kernels_of_its_own(monkeypatch):
    taken = []
    monkeypatch.setattr(attention_tpu, "attend", lambda *_, **options: taken.append(options))
    operands, mask, _ = random_case(1, 8, 8, 64, causal=True, packed=False, bias=True)
    with placed(Placement("tpu")):
        attention.attend(*operands[:3], attention.Shared(mask, "fused", operands[3]))
    assert taken == [{"causal": True, "packed": False, "interpret": False}]


def test_a_tpu_takes_them_by_name_only():
    model = network.T5Config(1, 1, 1, 64, 1, 1, 1, dtype="bfloat16")
    choice = attention.choose(model, platform="tpu", packed=True)
    assert choice.backend == "plain" and "ATTENTION='fused'" in choice.reason
    named = dataclasses.replace(model, attention="fused")
    assert attention.choose(named, platform="tpu", packed=True).backend == "fused"


COMPILE = """
import json, sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from t5scaling.model import attention_tpu

topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
device = jax.sharding.SingleDeviceSharding(topology.devices[0])
peaks = []
for batch, heads, length, keys, dim, causal, packed in json.load(sys.stdin):
    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=device)

    def both(q, k, v, bias, query_segments, key_segments, do):
        def attend(*operands):
            return attention_tpu.attend(
                *operands, query_segments, key_segments, causal=causal, packed=packed
            )
        o, pull = jax.vjp(attend, q, k, v, bias)
        return o, pull(do)

    q, k = array(batch, length, heads, dim), array(batch, keys, heads, dim)
    bias = array(heads, length + keys - 1, dtype=jnp.float32)
    segments = [array(batch, n, dtype=jnp.int32) for n in (length, keys)]
    compiled = jax.jit(both).lower(q, k, k, bias, *segments, q).compile()
    memory = compiled.memory_analysis()
    peaks.append(memory.peak_memory_in_bytes - memory.argument_size_in_bytes)
print(json.dumps(peaks))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="no libtpu here, which compiles for TPUs"
)
def test_a_v5e_accepts_the_kernels():
    cases = [(8, 12, 512, 512, 64, False, True), (8, 12, 114, 114, 128, True, False)]
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        env=os.environ | ahead_of_time._NO_TPU_HERE | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    encoder, _ = json.loads(done.stdout.splitlines()[-1])
    batch, heads, queries, keys, *_ = cases[0]
    assert encoder < batch * heads * queries * keys * 2  # less than all weights in bfloat16
