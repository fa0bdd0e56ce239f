"""The reference runtime: what a converted model says, measured.

A forward pass on NumPy's BLAS, for a :class:`~qconv.formats.base.Model` of any format. Weights stream through it block by block, so that
a model larger than memory runs::

    network = load_network(model)
    for found in forward(network, [tokens]):
        found.logits                                     # float32 (positions, vocabulary)

==================== =======================================================================================
``configuration``    what the metadata and the architecture's description say: sizes, scales, windows, routing
``rope_settings``    what the metadata say of rotary positions
``network``          every tensor in its place, names and shapes checked before a weight is read
``layers``           what a block is made of; ``build`` finds its tensors, ``place`` looks them up
``weights``          matrices as slabs of rows, decoded ahead of their use by a pool of threads
``forward``          the pass: embedding, blocks, logits where they are asked for
``run``              what all blocks of a pass share
``block``            one block: attention and feed-forward around the residual stream
``self_attention``   attention with keys and values for every head or group of heads
``latent_attention`` attention with keys and values from one short vector
``indexer``          which positions sparse attention attends to
``temperature``      queries that grow with the position
``attention``        causal attention by tiles, with running maxima and sums
``rope``             rotary positions
``feed_forward``     gated and plain feed-forward, mixtures of experts
``norms``            norms with a model's weights
``elementwise``      norms, activations, softmax
``head``             output norm and logits, in slabs of the vocabulary
``cache``            keys and values of earlier positions
``hooks``            what a pass tells whoever collects statistics or compares two models
``stages``           a pass in stages, with the streams in the caller's hands
``tokenizer``        text to tokens and back, from the metadata of any model
==================== =======================================================================================

What makes text with it:

================= ==========================================================================================
``generate``      a prompt in, tokens out one by one
``sampling``      the next token from logits
``held``          a model whose decoded weights stay in memory as far as they fit
``chat_template`` conversations as the model was trained to see them
``chat_sandbox``  the program that renders one template
================= ==========================================================================================

What is measured with it:

========================== =================================================================================
``windows``                which tokens are run together, and which of them are scored
``losses``                 from logits to losses and perplexities
``perplexity``             windows through a model, scored one by one
``divergence``             how far one model's predictions lie from another's
``bases``                  files of a reference's predictions: ``logits_file`` (llama.cpp's) and ``compact_base``
``importance``             squared inputs of every matrix; ``importance_statistics`` reads them
``hessian``                full second moments of inputs
``weight_check``           weights of two models beside what encodings explain
``layerwise``              the first block and tensor at which two models part
``identity``               digests of models and texts
========================== =================================================================================
"""
