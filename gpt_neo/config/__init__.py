"""Configuration: legacy JSON in, frozen dataclasses out. No TensorFlow is imported here."""

from gpt_neo.config.loader import load_config
from gpt_neo.config.schema import DatasetConfig, DatasetRef, ModelConfig, RunConfig

__all__ = ["DatasetConfig", "DatasetRef", "ModelConfig", "RunConfig", "load_config"]
