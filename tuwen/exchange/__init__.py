"""Whole published models into run folders and back."""
