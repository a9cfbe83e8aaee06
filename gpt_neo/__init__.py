"""GPT-Neo on Mesh-TensorFlow."""
