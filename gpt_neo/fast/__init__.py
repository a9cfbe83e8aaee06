"""Decoding on a CPU by OpenVINO, without TensorFlow."""
