"""Making GPTQ and AWQ folders."""
