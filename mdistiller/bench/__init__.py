"""Benchmarks of training steps against a conventional implementation (the plain path)."""
