"""Measurements as ratios and medians; each is `python -m benchmarks.NAME [--quick] [--json]`."""
