"""How text, a model and the training loop come together in each stage."""
