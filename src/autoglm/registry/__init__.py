"""Immutable model versions named by digest, and the aliases that point at them."""
