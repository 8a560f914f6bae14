"""The command line: thin. Each command opens what it needs when it is called."""

from __future__ import annotations


def main() -> None:
    """Entry point `autoglm`."""
    from autoglm.cli.commands import app

    app()
