"""Training and evaluating a run: device, optimiser, trainer, checkpoints, run folder."""
