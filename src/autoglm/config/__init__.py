"""Layers, binding, provenance. Knows no stage: sections are handed to it."""
