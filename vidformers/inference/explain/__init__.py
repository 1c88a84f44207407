"""Explains predictions: the relevance of patches and frames, and pictures of it."""
