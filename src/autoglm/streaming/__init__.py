"""source → collector → broker → consumer group → processor; then the feature table."""
