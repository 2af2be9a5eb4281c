"""Measure trained models for the figures, and write CSV, JSON and NPZ files."""
