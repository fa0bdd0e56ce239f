"""The k-quants: super-blocks of 256 weights whose sub-blocks have small integers for scales, and their two searches."""
