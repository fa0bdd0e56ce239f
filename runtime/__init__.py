"""The reference runtime: what a converted model says, measured.

A forward pass on NumPy's BLAS, for a :class:`~qconv.formats.base.Model` of any format. Weights stream through it block by block, so that
a model larger than memory runs::

    network = load_network(model)
    for found in forward(network, [tokens]):
        found.logits                                     # float32 (positions, vocabulary)

================ ===========================================================================================
``building``     from metadata and tensors to a network: the configuration, every tensor in its place
``forward``      the pass: embedding, blocks, logits where they are asked for
``run``          what all blocks of a pass share
``block``        one block: attention and feed-forward around the residual stream
``attention``    kinds of heads, positions, sparse attention
``recurrent``    layers with a memory of fixed size instead: linear attention, state spaces
``feed_forward`` gated and plain feed-forward, mixtures of experts
``residual``     residual streams of other shapes than one vector per token
``norms``        norms with a model's weights
``elementwise``  norms, activations, softmax
``head``         output norm and logits, in slabs of the vocabulary
``weights``      matrices as slabs of rows, decoded ahead of their use by a pool of threads
``held``         a model whose decoded weights stay in memory as far as they fit
``cache``        keys and values of earlier positions
``stages``       a pass in stages, with the streams in the caller's hands
``hooks``        what a pass tells whoever collects statistics or compares two models
``workers``      the threads of a pass
================ ===========================================================================================

``tokenizing`` turns text into tokens and back, from the metadata of any model; ``generating`` makes text, as chats too; ``measuring`` has
perplexity, divergence, importance and second moments, and where two models part.
"""
