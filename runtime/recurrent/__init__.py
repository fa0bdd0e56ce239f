"""Layers with a memory of fixed size: linear attention and state spaces."""
