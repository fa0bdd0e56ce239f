"""Checkpoints that torch wrote with pickle, read by a machine that imports nothing and runs nothing."""

from .checkpoint import PickledCheckpoint, is_pickled_checkpoint, read_pickled_checkpoint

__all__ = ["PickledCheckpoint", "is_pickled_checkpoint", "read_pickled_checkpoint"]
