"""What a model is worth: log-likelihoods of texts, tasks made of them, and the evaluation harness."""
