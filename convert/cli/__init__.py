"""The command line: ``app`` puts it together; one module per command, imported when the command runs."""

import gc

# Starting makes many objects that stay and no garbage: looking for it every 700 of them takes an eighth of the time to start.
gc.set_threshold(50_000, 20, 20)

from .app import build_app, main  # after the threshold is set, for which they are

__all__ = ["build_app", "main"]
