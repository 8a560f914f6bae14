"""Attention by name: `top_k`, `block_top_k` or the user's own, probed before it is trained."""
