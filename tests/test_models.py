"""The models of gin/models: their sizes, their macros, and what their headers promise."""

import dataclasses
import pathlib
import re
import resource
import sys

import pytest

from t5scaling import config
from t5scaling.model import network
from tests.conftest import REPOSITORY

ROOT = pathlib.Path(REPOSITORY) / "gin" / "models"
FILES = sorted(path.relative_to(ROOT).with_suffix("").as_posix() for path in ROOT.rglob("*.gin"))
# Vocabulary, activations, whether the output shares the embeddings.
T5_1_0 = (32_128, ("relu",), True)
T5_1_1 = (32_128, ("gelu", "linear"), False)
BYT5 = (384, ("gelu", "linear"), False)
MT5 = (250_112, ("gelu", "linear"), False)
# The above, then width, heads, size of a head, MLP, layers of the encoder and of the decoder.
ARCHITECTURES = {
    "t5_1_0/small": (*T5_1_0, 512, 8, 64, 2_048, 6, 6),
    "t5_1_0/base": (*T5_1_0, 768, 12, 64, 3_072, 12, 12),
    "t5_1_0/large": (*T5_1_0, 1_024, 16, 64, 4_096, 24, 24),
    "t5_1_0/3b": (*T5_1_0, 1_024, 32, 128, 16_384, 24, 24),
    "t5_1_0/11b": (*T5_1_0, 1_024, 128, 128, 65_536, 24, 24),
    "t5_1_1/small": (*T5_1_1, 512, 6, 64, 1_024, 8, 8),
    "t5_1_1/base": (*T5_1_1, 768, 12, 64, 2_048, 12, 12),
    "t5_1_1/large": (*T5_1_1, 1_024, 16, 64, 2_816, 24, 24),
    "t5_1_1/xl": (*T5_1_1, 2_048, 32, 64, 5_120, 24, 24),
    "t5_1_1/xxl": (*T5_1_1, 4_096, 64, 64, 10_240, 24, 24),
    "mt5/small": (*MT5, 512, 6, 64, 1_024, 8, 8),
    "mt5/base": (*MT5, 768, 12, 64, 2_048, 12, 12),
    "mt5/large": (*MT5, 1_024, 16, 64, 2_816, 24, 24),
    "mt5/xl": (*MT5, 2_048, 32, 64, 5_120, 24, 24),
    "mt5/xxl": (*MT5, 4_096, 64, 64, 10_240, 24, 24),
    "byt5/small": (*BYT5, 1_472, 6, 64, 3_584, 12, 4),
    "byt5/base": (*BYT5, 1_536, 12, 64, 3_968, 18, 6),
    "byt5/large": (*BYT5, 1_536, 16, 64, 3_840, 36, 12),
    "byt5/xl": (*BYT5, 2_560, 32, 64, 6_720, 36, 12),
    "byt5/xxl": (*BYT5, 4_672, 64, 64, 12_352, 36, 12),
    "flan_t5/small": (*T5_1_1, 512, 6, 64, 1_024, 8, 8),
    "flan_t5/base": (*T5_1_1, 768, 12, 64, 2_048, 12, 12),
    "flan_t5/large": (*T5_1_1, 1_024, 16, 64, 2_816, 24, 24),
    "flan_t5/xl": (*T5_1_1, 2_048, 32, 64, 5_120, 24, 24),
    "flan_t5/xxl": (*T5_1_1, 4_096, 64, 64, 10_240, 24, 24),
    "isik2024/3b": (250_112, ("relu",), True, 1_024, 32, 128, 16_384, 24, 24),
    "isik2024/770m": (250_112, ("gelu", "linear"), False, 1_024, 16, 64, 2_816, 24, 24),
    "mini": (8_192, ("gelu", "linear"), False, 256, 4, 64, 512, 4, 4),
    "tiny": (8_192, ("gelu", "linear"), False, 128, 4, 32, 256, 2, 2),
}
# What the public checkpoints hold, counted in T5X.
PUBLISHED = {
    "t5_1_1/small": 76_961_152,
    "t5_1_1/base": 247_577_856,
    "t5_1_1/large": 783_150_080,
    "t5_1_1/xl": 2_849_757_184,
    "t5_1_1/xxl": 11_135_332_352,
}


def load(name, **macros):
    """The T5Config that a pretraining run with this model gets."""
    config.load([f"gin/models/{name}.gin", "gin/runs/pretrain.gin"], macros)
    return network.T5Config(**config.bindings_of(network.T5Config))


def closed_form(name):
    """Parameters by the sizes alone: the layers' matrices and norms, and what is outside them."""
    vocabulary, activations, tied, width, heads, head, mlp, encoder, decoder = ARCHITECTURES[name]
    attention = 4 * width * heads * head
    feed_forward = (len(activations) + 1) * width * mlp
    layers = encoder * (attention + feed_forward + 2 * width)
    layers += decoder * (2 * attention + feed_forward + 3 * width)
    position_biases, final_norms = 2 * 32 * heads, 2 * width
    return layers + position_biases + final_norms + (1 if tied else 2) * vocabulary * width


def peak_memory_bytes():
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def test_every_model_has_its_file():
    assert set(FILES) == set(ARCHITECTURES)


@pytest.mark.parametrize("name", FILES)
def test_architecture_and_number_of_parameters(name):
    model = load(name)
    assert ARCHITECTURES[name] == (
        model.vocab_size,
        model.mlp_activations,
        model.logits_via_embedding,
        model.emb_dim,
        model.num_heads,
        model.head_dim,
        model.mlp_dim,
        model.num_encoder_layers,
        model.num_decoder_layers,
    )
    assert model.scan_layers == (name not in ("mini", "tiny"))
    assert model.dtype == ("float32" if name in ("mini", "tiny") else "bfloat16")
    assert model.dropout_rate == (0.1 if name.startswith("t5_1_0") else 0.0)
    assert network.count_parameters(model) == closed_form(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers_of_parameters(name):
    assert network.count_parameters(load(name)) == PUBLISHED[name]


@pytest.mark.parametrize("name", FILES)
def test_the_header_tells_the_command_and_the_number_of_parameters(name):
    head = (ROOT / f"{name}.gin").read_text().split("from __gin__")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert f"--gin_file=gin/models/{name}.gin" in head and "Device and" in head
    (promised,) = re.findall(r"Expected: ([\d,]+) parameters", head)
    assert int(promised.replace(",", "")) == closed_form(name)


@pytest.mark.parametrize("name", FILES)
def test_every_model_reads_the_macros(name):
    one = load(name, DROPOUT_RATE=0.25, ACTIVATION_DTYPE="float32", SCAN_LAYERS=False)
    assert (one.dropout_rate, one.dtype, one.scan_layers) == (0.25, "float32", False)
    other = load(name, REMAT_POLICY="full", ACTIVATION_DTYPE="bfloat16", SCAN_LAYERS=True)
    assert (other.remat, other.dtype, other.scan_layers) == ("full", "bfloat16", True)


@pytest.mark.parametrize("name", ["t5_1_0/small", "t5_1_1/small"])
def test_unrolled_layers_hold_as_many_parameters(name):
    assert network.count_parameters(load(name, SCAN_LAYERS=False)) == closed_form(name)


def test_counting_allocates_no_parameters():
    """11B of them take 45 GB. The width is one that no other test counts: no cache knows it."""
    model = dataclasses.replace(load("t5_1_0/11b"), emb_dim=1_152)
    before = peak_memory_bytes()
    assert network.count_parameters(model) > closed_form("t5_1_0/11b")
    assert peak_memory_bytes() - before < 256 << 20
