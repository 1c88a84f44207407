"""Attention sublayers. `core` holds the code that all schemes share; a scheme decides what attends to what."""
