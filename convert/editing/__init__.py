"""Changing GGUF files without reading a weight: cut, joined, with other metadata."""
