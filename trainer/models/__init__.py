"""The families of models: how each is fitted, how it predicts natively, what its parameters are."""
