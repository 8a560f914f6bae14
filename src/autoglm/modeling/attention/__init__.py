"""Attention by name: sparse ones of ours, the user's own; and rows packed without pads."""
