"""Momentum copies and queues of past features."""
