import runpy
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
PACKAGES = runpy.run_path(str(HERE / "fairseq_efficient" / "systems.py"))["PACKAGES"]

setup(
    name="fairseq-efficient",
    version="0.1.0",
    description="Efficient transformer systems as fairseq plugins (--user-dir)",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=[p for name in PACKAGES for p in (name, f"{name}.*")]),
    package_data={"": ["configs/*.yaml", "templates/*", "py.typed", "README.md"]},
    # torch < 2.10 has known memory-safety holes in its checkpoint reader; PyPI's `apex` is not NVIDIA's.
    install_requires=[
        "torch>=2.10",
        "fairseq-fixed==0.12.3.1",
        "hydra-core==1.3.2",
        "omegaconf==2.3.0",
        "numpy>=1.26",
        "rouge-score==0.1.2",
        "sentencepiece>=0.2",
        "sacrebleu>=2.4",
        "tqdm>=4.66",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "safetensors>=0.4",
        "tokenizers>=0.21",
        "tensorboard>=2.16",
        "psutil>=5.9",
    ],
    extras_require={
        "peers": ["transformers>=5"],  # only scripts/bench/peers.py, which compares with it
        "dev": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff",
            "mypy",
            "pdoc>=15",
        ],
    },
)
