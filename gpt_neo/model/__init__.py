"""The network as Mesh-TensorFlow graphs."""
