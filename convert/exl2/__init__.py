"""Making EXL2 folders: measure every option, choose, quantize, write."""
