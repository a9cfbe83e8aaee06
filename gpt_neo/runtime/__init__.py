"""Running graphs: training, evaluation, prediction."""
