"""Training on labelled structures: data, configuration, loop, checkpoints, evaluation."""
