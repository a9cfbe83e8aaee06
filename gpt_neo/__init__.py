"""GPT-Neo on Mesh-TensorFlow."""

__version__ = "0.1.0"
