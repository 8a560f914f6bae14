"""source → collector → broker → consumer group → processor; the feature table takes it from there."""
