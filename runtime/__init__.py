"""The reference runtime: what a converted model says, measured.

A forward pass on NumPy's BLAS, for a :class:`~qconv.formats.base.Model` of any format. Weights stream through it block by block, so that
a model larger than memory runs::

    network = load_network(model)
    for found in forward(network, [tokens]):
        found.logits                                     # float32 (positions, vocabulary)

================= ==========================================================================================
``configuration`` what the metadata and the architecture's description say: sizes, scales, windows, rotary settings
``network``       every tensor in its place, names and shapes checked before a weight is read
``weights``       matrices as slabs of rows, decoded ahead of their use by a pool of threads
``forward``       the pass: embedding, blocks, logits where they are asked for
``block``         one block: attention and feed-forward around the residual stream
``attention``     causal attention by tiles, with running maxima and sums
``rope``          rotary positions
``feed_forward``  gated and plain feed-forward, mixtures of experts
``elementwise``   norms, activations, softmax
``head``          output norm and logits, in slabs of the vocabulary
``cache``         keys and values of earlier positions
``hooks``         what a pass tells whoever collects statistics or compares two models
``tokenizer``     text to tokens and back, from the metadata of any model
================= ==========================================================================================
"""
