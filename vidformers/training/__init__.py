"""The trainer: loop, step, optimizer, checkpoints, evaluation."""
