"""The reference runtime: what a converted model says, measured."""
