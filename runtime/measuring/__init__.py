"""What a model says, measured: predictions, inputs of matrices, and how two models differ."""
