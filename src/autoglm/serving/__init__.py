"""Gateway and model workers. Routes and measures; never judges."""
