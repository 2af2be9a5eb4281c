"""Sweeps: plan many runs (without importing torch), and run them on this machine or on a cluster."""
