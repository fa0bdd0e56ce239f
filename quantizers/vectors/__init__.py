"""Explicit vectors for kernels, and what turns a kernel into machine code: the compiler, and the folder where its work is kept."""
