"""Text out of a model: conversations as it knows them, and one token after another."""
