"""Predictions, explanations and exports of trained models."""
