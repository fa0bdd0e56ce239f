"""The command line: ``app`` puts it together; one module per command, imported when the command runs."""

from .app import build_app, main

__all__ = ["build_app", "main"]
