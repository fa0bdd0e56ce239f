"""Encodings: bytes of one tensor to float32 rows and back. Knows no file and no model.

================ ===========================================================================================
``base``         the contract of an encoding, and the options of an encoder
``catalog``      every encoding that ggml numbers, with its sizes and the module that has its codec
``floats``       one number per weight; ``halves`` widens float16, ``finite`` finds what is no number
``legacy``       Q4_0 to Q8_0, with the searches ``block_search`` and ``minimum_search``
``k_quants``     super-blocks with small integers for scales
``i_quants``     points of a codebook, and unevenly spaced levels
``ternary``      TQ1_0 and TQ2_0; ``low_bit`` has Q1_0 and Q2_0, ``microscaling`` MXFP4 and NVFP4
``superblocks``  how super-blocks come into vector lanes
``vectors``      the language of kernels, and how they become machine code
``recipes``      which type each tensor of a mixture gets
``budget``       types for a size: the least sum of errors within it
``importance``   importance matrices, as encoders are given them
``rounding``     whole matrices with what is known of their inputs: error feedback, GPTQ, AWQ, EXL2
================ ===========================================================================================
"""
