"""Encodings: bytes of one tensor to float32 rows and back. Knows no file and no model."""
