"""Watching over runs from outside: restarts, records of what ran, and how runs compare. No TensorFlow."""
