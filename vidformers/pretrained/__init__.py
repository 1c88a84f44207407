"""Weights from elsewhere: reading their files, knowing their layouts, fitting them to a model here."""
