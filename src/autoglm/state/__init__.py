"""Durable control state: one SQLite file per writer, migrations, compare-and-set, event log."""
