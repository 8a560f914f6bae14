"""Optimizers by name: (parameter groups, peak rate) → torch optimizer.

A group has `params`, `names`, `weight_decay` and `lr_scale`; the trainer sets its `lr` before each
step. One with an attribute `gradient_norms` is handed the norm of each group before clipping.
"""
