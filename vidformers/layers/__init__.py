"""Layers shared by all models: tokens, linear maps, convolutions, the embedding and the MLP."""
