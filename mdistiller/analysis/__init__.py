"""Measures trained models for the figures; writes CSV, JSON and NPZ."""
