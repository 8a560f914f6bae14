"""Scores with intervals, paired comparisons, floors. Knows nothing of who asks."""
