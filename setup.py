"""Package metadata. Ranges live here, exact versions in constraints.txt."""

import sys

from setuptools import find_packages, setup

if not (3, 9) <= sys.version_info[:2] <= (3, 11):
    sys.exit(
        "gpt_neo needs Python 3.9, 3.10 or 3.11 (TensorFlow 2.15, the last release with TPUEstimator, "
        "has no build for others); this is Python {}.{}.".format(*sys.version_info)
    )

setup(
    name="gpt_neo",
    version="0.1.0",
    description="GPT-Neo on Mesh-TensorFlow: train, evaluate, sample and convert",
    license="MIT",
    packages=find_packages(include=["gpt_neo", "gpt_neo.*"]),
    python_requires=">=3.9,<3.12",
    install_requires=[
        "tensorflow>=2.15.1,<2.16",  # model, runtime: the last line with Estimator and TPUEstimator
        "tensorflow-estimator>=2.15.0,<2.16",  # runtime: TPUEstimator
        "mesh-tensorflow>=0.1.21,<0.2",  # model: named dimensions and their lowering to devices
    ],
    extras_require={
        "dev": [
            "pytest>=8",  # tests
            "ruff>=0.6",  # make lint
            "mypy>=1.10",  # make lint
        ],
    },
)
