"""Hugging Face transformers' T5 on PyTorch beside accelerator.py's parts `mfu` and `decode`.

    python benchmarks/accelerator_peer.py [--out=results/accelerator] [--only=0,6] [--rehearse]

The same sizes, rows and lengths, in bfloat16: train steps under autocast with transformers'
Adafactor, and `generate` of as many positions. Parameters are random, those of the configuration:
nothing is downloaded. Results are records of the part `torch`, see accelerator.py. --only: numbers,
from 0, of what WORK lists.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerator_tools as tools
import torch
import transformers
from transformers.optimization import Adafactor

Work = tuple[Callable[..., dict[str, Any]], dict[str, Any]]  # train or generate, and its arguments


class Peer:
    """Models, batches and clocks of one device."""

    def __init__(self, bench: tools.Bench):
        self.bench = bench
        self.device = "cpu" if bench.rehearse else "cuda"
        self.vocab_size = 128 if bench.rehearse else tools.VOCABULARY

    def model(self, size: str, attention: str) -> Any:
        chosen = tools.SIZES["rehearsal" if self.bench.rehearse else size]
        emb_dim, heads, head_dim, layers, mlp_dim = chosen
        config = transformers.T5Config(
            vocab_size=self.vocab_size,
            d_model=emb_dim,
            d_kv=head_dim,
            d_ff=mlp_dim,
            num_layers=layers,
            num_decoder_layers=layers,
            num_heads=heads,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            pad_token_id=0,
            decoder_start_token_id=0,
            eos_token_id=None,
            attn_implementation=attention,
        )
        torch.manual_seed(0)
        with torch.device(self.device):
            model = transformers.T5ForConditionalGeneration(config)
        # Version 5 shares the embedding with the output projection whatever the configuration says.
        output = torch.randn_like(model.lm_head.weight) * emb_dim**-0.5
        model.lm_head.weight = torch.nn.Parameter(output)
        return model

    def tokens(self, values: Any) -> torch.Tensor:
        return torch.from_numpy(values).long().to(self.device)

    def wait(self, _: Any) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def peak_gib(self) -> float:
        """Since the last call of `forget`."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.device == "cuda" else 0.0

    def forget(self) -> None:
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def train(peer: Peer, size: str, rows: int, attention: str, compiled: bool) -> dict[str, Any]:
    model = peer.model(size, attention)
    model.config.use_cache = False
    batch = tools.make_batch(rows, *peer.bench.lengths(), peer.vocab_size)
    x, y = (peer.tokens(batch[f"{n}_tokens"]) for n in ("encoder_input", "decoder_target"))
    arguments = {
        "input_ids": x,
        "attention_mask": (x > 0).long(),
        "labels": y.masked_fill(y == 0, -100),  # no loss
    }
    # T5X's settings; relative_step would replace the learning rate by a schedule.
    optimizer = Adafactor(model.parameters(), lr=1e-3, scale_parameter=True, relative_step=False)
    forward = torch.compile(model) if compiled else model
    loss = torch.zeros(())

    def step() -> None:
        nonlocal loss
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(peer.device, dtype=torch.bfloat16):
            loss = forward(**arguments).loss
        loss.backward()
        optimizer.step()

    start = time.perf_counter()
    step()
    peer.wait(None)
    warm_s = time.perf_counter() - start
    with peer.bench.alone():
        ms, spread = tools.timed(step, peer.wait, 1 if peer.bench.rehearse else 5)
    return {
        "used_attention": model.config._attn_implementation,
        "ms": ms,
        "spread_ms": spread,
        "rows_per_s": rows / ms * 1e3,
        "warm_s": warm_s,
        "peak_gib": peer.peak_gib(),
        "loss": loss.item(),
    }


def generate(peer: Peer, size: str, rows: int, beams: int) -> dict[str, Any]:
    width, length = (16, 8) if peer.bench.rehearse else (256, 128)
    model = peer.model(size, "sdpa").eval().to(torch.bfloat16)
    x = peer.tokens(tools.decoder_inputs(rows, width, peer.vocab_size))

    def call() -> Any:
        return model.generate(
            input_ids=x,
            attention_mask=(x > 0).long(),
            num_beams=beams,
            do_sample=False,
            min_new_tokens=length,
            max_new_tokens=length,
        )

    with torch.inference_mode(), peer.bench.alone():
        positions = call().shape[1] - 1
        ms, spread = tools.timed(call, peer.wait, 1, 2)
    return {
        "positions": positions,
        "ms": ms,
        "spread_ms": spread,
        "ms_per_position": ms / positions,
        "tokens_per_s": rows * positions / ms * 1e3,
        "peak_gib": peer.peak_gib(),
    }


def attempt(peer: Peer, call: Callable[..., dict[str, Any]], **names: Any) -> None:
    """Records what a call returns, or why it failed."""
    peer.forget()
    what = {"what": call.__name__, **names}
    try:
        found = call(peer, **names)
    except Exception as error:
        peer.bench.failed("torch", error, **what)
    else:
        peer.bench.record("torch", **what, **found)


def _training(size: str, rows: int, attention: str, compiled: bool) -> Work:
    return train, {"size": size, "rows": rows, "attention": attention, "compiled": compiled}


def _generation(size: str, rows: int, beams: int) -> Work:
    return generate, {"size": size, "rows": rows, "beams": beams}


# What may take longest is last.
WORK = (
    _training("base", 64, "sdpa", False),
    _training("base", 64, "eager", False),
    _training("small", 128, "sdpa", False),
    _generation("base", 128, 1),
    _generation("base", 32, 4),
    _generation("small", 128, 1),
    _training("base", 64, "sdpa", True),
)
REHEARSAL = (
    _training("base", 4, "eager", False),
    _generation("base", 2, 1),
    _generation("base", 1, 4),
)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=os.environ.get("OUT", "results/accelerator"))
    parser.add_argument("--only", default="", help="numbers of WORK, comma-separated")
    parser.add_argument("--rehearse", action="store_true")
    chosen = parser.parse_args(arguments)
    only = tuple(int(number) for number in chosen.only.split(",") if number)
    out = Path(chosen.out)
    out.mkdir(parents=True, exist_ok=True)
    bench = tools.Bench(out, chosen.rehearse, only=only)
    peer = Peer(bench)
    transformers.logging.set_verbosity_error()
    bench.record(
        "torch", what="setup", torch=torch.__version__, transformers=transformers.__version__
    )
    for call, names in bench.chosen(REHEARSAL if chosen.rehearse else WORK):
        attempt(peer, call, **names)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
