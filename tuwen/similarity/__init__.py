"""Scores between token sequences, as pure functions."""
