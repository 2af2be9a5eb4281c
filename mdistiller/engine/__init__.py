"""Runs: device, optimisation, evaluation, checkpoints, records."""
