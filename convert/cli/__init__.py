"""The command line: ``app`` puts it together; one module per command, imported when the command runs."""

import gc

# starting makes many objects that stay and no garbage, for which Python would look after every 700 of them
gc.set_threshold(50_000, 20, 20)

from .app import build_app, main  # after the threshold is set, for which they are

__all__ = ["build_app", "main"]
