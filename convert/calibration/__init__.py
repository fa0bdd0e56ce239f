"""Measuring what a model's matrices see of a text, for quantizers that ask."""
