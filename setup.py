"""Packages and requirements: lower bounds here, the known-good set in constraints.txt."""

import pathlib

from setuptools import find_packages, setup

README = pathlib.Path(__file__).parent / "README.md"

setup(
    name="t5scaling",
    version="0.1.0",
    description="From text to a trustworthy scaling law for transfer learning",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["t5scaling", "t5scaling.*", "tasks", "tasks.*"]),
    package_data={
        "tasks": ["corpus/*"],
        "t5scaling.analysis.presentation.html": ["page.css", "templates/*.html"],
    },
    python_requires=">=3.11",
    install_requires=[
        "array_record>=0.8.1",
        "etils[epath]>=1.9",
        "fsspec>=2024.10",
        "flax>=0.10.2",
        "gin-config>=0.5.0",
        "grain>=0.2.10",
        "jax>=0.8.2",  # has jax_enable_preemption_service
        "jinja2>=3.1",
        "markupsafe>=2.1",
        "matplotlib>=3.9",
        "msgpack>=1.0.8",
        "numpy>=2.0",
        "optax>=0.2.4",
        "orbax-checkpoint>=0.12.3",  # saves where that service is off
        "packaging>=24.0",
        "pandas>=2.2",
        "rich>=13.7",
        "rouge_score>=0.1.2",
        "sacrebleu>=2.4",
        "safetensors>=0.4.3",  # reads and writes the files of Hugging Face
        "scipy>=1.13",
        # 0.2.3 needs a newer protobuf than TensorFlow comes with, and `import seqio` fails.
        "sentencepiece>=0.2.0,<0.2.3",
        "tensorboardX>=2.6",
        "tensorstore>=0.1.60",
        # What the data is: only materialisation imports these.
        "seqio>=0.0.20",
        "tensorflow>=2.18",
        "tensorflow-datasets>=4.9.6",
        "tensorflow-text>=2.18",
        "importlib_resources>=6.0",  # `tfds build` needs it and does not ask for it
    ],
    extras_require={
        "gcs": ["gcsfs>=2026.8"],
        "tpu": ["jax[tpu]", "gcsfs>=2026.8"],
        "gpu": ["jax[cuda13]"],
        "cuda12": ["jax[cuda12]"],
        # The compiler for GPUs, in the version of jax, without NVIDIA's libraries.
        "plan-gpu": ["jax[cuda13-local]>=0.10"],
        "beam": ["apache-beam>=2.60"],
        "bench": ["torch>=2.4", "transformers>=4.44"],
        "test": [
            "apache-beam>=2.60",
            "gcsfs>=2026.8",
            "hypothesis>=6.100",
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "tokenizers>=0.20",
        ],
    },
)
