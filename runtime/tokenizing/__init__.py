"""Text to tokens and back, by the vocabulary in a model's metadata."""
