"""The edge: one engine per file, found by its entry point, imported on first use."""
