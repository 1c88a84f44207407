"""Attention: `core` holds what all schemes share; each other file says which keys each query sees."""
