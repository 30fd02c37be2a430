"""The training loop at several steps a call, in turn and in one process: time of a step.

    python benchmarks/steps_per_call.py [--steps=1,8,20] [--legs=4] [--model=small]

On the device that JAX finds. "tiny" is the model of the other benchmarks, with 32 rows; "small",
one layer of width 32 with 4 rows, has steps so short that they show what the host takes for each.
Of each leg the 20 steps between two lines of metrics are timed.
"""

import argparse
import os
import statistics

import tiny

VOCABULARY = 8192  # the embedded corpus's, rounded up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", default="1,8,20", help="steps a call, comma-separated")
    parser.add_argument("--legs", type=int, default=4, help="of each, in turn")
    parser.add_argument("--model", choices=("small", "tiny"), default="small")
    parser.add_argument("--examples_root", default="runs/examples")
    arguments = parser.parse_args()
    from t5scaling import compilation

    compilation.prepare()
    import jax
    import loop_overhead

    from t5scaling.model import network

    small = network.T5Config(
        vocab_size=VOCABULARY, emb_dim=32, num_heads=2, head_dim=16, num_encoder_layers=1,
        num_decoder_layers=1, mlp_dim=64, dropout_rate=0.1,
    )  # fmt: skip
    config, rows = (small, 4) if arguments.model == "small" else (tiny.model(VOCABULARY), tiny.ROWS)
    numbers = [int(number) for number in arguments.steps.split(",")]
    device = jax.devices()[0].device_kind
    print(f"{device}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.2f}", flush=True)
    legs = {number: [] for number in numbers}
    for turn in range(arguments.legs + 1):
        for number in numbers if turn % 2 else reversed(numbers):
            leg = loop_overhead.loop_leg(config, arguments.examples_root, rows, number)
            if turn:  # the first compiles
                legs[number].append(leg)
    for number, of in legs.items():
        for what in ("wall_s", "cpu_s"):
            times = [1e3 * getattr(leg, what) for leg in of]
            first = [getattr(leg, what) for leg in legs[numbers[0]]]
            ratio = statistics.median(
                getattr(leg, what) / other for leg, other in zip(of, first, strict=True)
            )
            print(
                f"{number} steps a call: {what} {statistics.median(times):.2f} ms a step "
                f"({min(times):.2f}-{max(times):.2f}), {ratio:.2f} of {numbers[0]}",
                flush=True,
            )


if __name__ == "__main__":
    main()
