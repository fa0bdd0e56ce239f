"""Rounding a whole matrix with what is known of its inputs: error feedback, groups of GPTQ and AWQ, ExLlamaV2's options."""
