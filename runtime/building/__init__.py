"""From the metadata and tensors of a model to a network: its configuration, and every tensor in its place."""
