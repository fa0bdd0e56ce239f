"""The application: plans, streaming execution, resume, seals and the command line.

================ ===========================================================================================
``cli``          a module for each command
``api``          the verbs for Python programs
``plan``         every output tensor's encoding, size and place, before a weight is read; ``choices``, ``settings``
``execute``      a plan carried out: slabs of rows through a pool of threads
``output``       the files while they are being made: temporary names, ``journal``, ``locking``, ``flush``
``budget``       types for a size or a rate, judged by what rounding does to predictions
``calibration``  what matrices see of a text: importance and second moments
``exl2``         EXL2 folders; ``packed`` has those of GPTQ and AWQ
``validation``   source and result side by side, and the receipt
``editing``      metadata changed, files cut and joined, without reading a weight
``diff``         two models compared tensor by tensor
================ ===========================================================================================
"""
