"""How often a model is right, measured with tasks of its own kind."""
