"""One entry per process; each wires stages and holds no logic."""
