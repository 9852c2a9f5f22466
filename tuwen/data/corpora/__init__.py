"""Readers: every form of corpus becomes rows."""
