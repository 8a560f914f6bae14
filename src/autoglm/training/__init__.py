"""Trials: chains of stored stages, trained in a warm worker process."""
