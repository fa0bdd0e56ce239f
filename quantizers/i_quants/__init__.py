"""The i-quants: groups of weights that are points of a codebook, or single ones that take unevenly spaced levels, and their searches."""
