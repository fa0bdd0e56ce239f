"""Residual streams of other shapes than one vector per token: several of them, and what a block learns of a token by itself."""
