"""Where change events come from, one kind of source per file."""
