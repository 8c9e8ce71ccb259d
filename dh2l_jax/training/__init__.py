"""Training: configuration, objective, optimiser, jitted steps, checkpoints, logs and the loop."""
