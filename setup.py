"""Package metadata. Ranges live here, exact versions in constraints.txt."""

import os
import re
import shutil
import sys

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

if not (3, 9) <= sys.version_info[:2] <= (3, 11):
    sys.exit(
        "gpt_neo needs Python 3.9, 3.10 or 3.11 (TensorFlow 2.15, the last release with TPUEstimator, "
        "has no build for others); this is Python {}.{}. Another one beside it, with what is needed:\n"
        "  pip install uv && uv venv --python 3.11 .venv && uv pip install -c constraints.txt -e .".format(
            *sys.version_info
        )
    )

HERE = os.path.dirname(os.path.abspath(__file__))


class BuildWithConfigs(build_py):
    """A wheel holds what a clone has beside the package: the configs, and the versions that the tests run with."""

    def run(self):
        """Build, and copy them into the package; an editable installation finds them in the clone."""
        super().run()
        if not getattr(self, "editable_mode", False):
            inside = os.path.join(self.build_lib, "gpt_neo")
            shutil.copytree(os.path.join(HERE, "configs"), os.path.join(inside, "configs"), dirs_exist_ok=True)
            shutil.copy(os.path.join(HERE, "constraints.txt"), inside)


def version():
    """The version, which stands in the package alone."""
    with open(os.path.join(HERE, "gpt_neo", "__init__.py"), encoding="utf-8") as handle:
        return re.search(r'__version__ = "(.+)"', handle.read())[1]


setup(
    name="gpt_neo",
    version=version(),
    cmdclass={"build_py": BuildWithConfigs},
    description="GPT-Neo on Mesh-TensorFlow: train, evaluate, sample and convert",
    license="MIT",
    packages=find_packages(include=["gpt_neo", "gpt_neo.*"]),
    package_data={
        "gpt_neo": ["py.typed", "vocabulary/*"],  # GPT-2's merges, with their licence
        "gpt_neo.checkpoint": ["custom_code/*.py"],
        "gpt_neo.serving": ["page/*", "openapi.json"],
        "gpt_neo.spmd": ["constraints*.txt"],  # what its worker's environment is made of
    },
    python_requires=">=3.9,<3.12",
    install_requires=[
        "tensorflow>=2.15.1,<2.16",  # model, runtime: the last line with Estimator and TPUEstimator
        "tensorflow-estimator>=2.15.0,<2.16",  # runtime: TPUEstimator
        "mesh-tensorflow>=0.1.21,<0.2",  # model: named dimensions and their lowering to devices
        "tokenizers>=0.15",  # tokenizer: training and loading tokenizer.json
        "huggingface_hub>=0.24",  # checkpoint: models by name (tokenizers brings it)
        "setuptools>=68,<81",  # TensorBoard 2.15 imports pkg_resources, which later ones lack
        "google-crc32c>=1.1",  # dataprep, checkpoint: checksums of TFRecords and tensors without TensorFlow
        "regex>=2022.1",  # config: patterns of names, with a limit of time
        "ml-dtypes>=0.2",  # checkpoint: bfloat16 in NumPy (TensorFlow brings it)
        "tqdm>=4.60",  # dataprep: progress bars
        "zstandard>=0.20",  # dataprep: .jsonl.zst, the form The Pile comes in
    ],
    entry_points={
        "console_scripts": ["gpt-neo = gpt_neo.__main__:main"],
        # versions of the harness that look for models of other packages find ours here
        "lm_eval.models": ["gpt_neo = gpt_neo.evaluation.harness:GptNeoLM"],
    },
    extras_require={
        # fast: decoding on a CPU. One release, as its paged attention is no public operation; no wheels for Python 3.9
        "fast": ["openvino>=2026.4,<2026.5; python_version >= '3.10'"],
        "gpu": ["tensorflow[and-cuda]>=2.15.1,<2.16"],  # CUDA 12.2 and cuDNN beside TensorFlow
        "completion": ["shtab>=1.6"],  # gpt-neo completion: for bash, zsh and tcsh
        "gcs": ["google-cloud-storage>=2.10"],  # storage: gs:// paths
        # runtime: TPUs by name; TensorFlow's copy of cloud-tpu-client asks Google's API with these
        "tpu": ["google-api-python-client>=2", "oauth2client>=4"],
        "text": ["ftfy>=6"],  # dataprep: --ftfy
        "parquet": ["pyarrow>=12,<26"],  # dataprep: .parquet; later ones need NumPy 2, TensorFlow 2.15 NumPy 1
        "beam": ["apache-beam>=2.60"],  # dataprep: --beam, preparation on more than one machine
        # tracking: --experiment, to a folder, an SQL database, a MongoDB server
        "track": ["sacred>=0.8.7", "sqlalchemy>=1.4", "pymongo>=4"],
        # tracking: --track; beside what constraints.txt has for Python 3.9 none of them can be
        "wandb": ["wandb>=0.19; python_version >= '3.10'"],
        "mlflow": ["mlflow-skinny>=2.14; python_version >= '3.10'"],
        "trackio": ["trackio>=0.20; python_version >= '3.10'"],
        # serving: HTTP, and figures for Prometheus
        "serve": ["starlette>=0.40", "uvicorn>=0.30", "prometheus-client>=0.20"],
        "browser": ["playwright>=1.40"],  # tests: the page in a Chromium, which the system brings
        "plot": ["matplotlib>=3.6"],  # make demo: loss.png; inspect-data
        # evaluation: gpt-neo harness
        "harness": ["lm_eval>=0.4.9,<0.5; python_version >= '3.10'"],
        "chat": ["jinja2>=3.1.6"],  # finetune, serve: chats; older ones let templates out of their sandbox
        # tests: coverage-guided fuzzing of what reads files
        "fuzz": ["atheris>=3; python_version >= '3.11'"],
        "bench": ["torch>=2.13", "transformers>=5", "psutil>=5"],  # make bench: the peer it measures against
        # make docs; the notebook in the slow tests
        "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.25", "nbclient>=0.10", "ipykernel>=6"],
        "dev": [
            "pytest>=8",  # tests
            "pytest-xdist>=3",  # tests: two processes
            "pytest-timeout>=2.3",  # tests: one that hangs fails by name
            "hypothesis>=6",  # tests: properties
            "mongomock>=4",  # tests: a pretended MongoDB server
            "wandb>=0.19",  # tests: a tracker, offline
            "mlflow-skinny>=2.14",  # tests: a tracker, in a folder
            "peft>=0.17",  # tests: adapters and their training
            "accelerate>=1",  # tests: the harness's own model of Hugging Face, beside torch and transformers
            "tenacity>=8",  # tests: the harness's client of a server
            "openai>=1.50",  # tests: the client that the server is to answer
            "gcp-storage-emulator>=2024.8.3",  # tests: a GCS server on loopback
            "ruff>=0.6",  # make lint
            "mypy>=1.10",  # make lint
        ],
    },
)
