"""Plugins: one entry-point group, one typed protocol per kind (`kinds.py`), lazy by name."""
