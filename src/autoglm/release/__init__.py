"""Gates, rollout controller, replayed traffic. Judges; never routes or measures."""
