"""A study of trials: space, sampler, journal. Trains nothing: it is handed a `TrialRunner`."""
