"""Predicts, explains and exports with trained models."""
