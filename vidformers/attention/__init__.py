"""Attention sublayers: `core` holds the code that all schemes share; a scheme defines the keys of each query."""
