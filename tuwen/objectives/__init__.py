"""Losses as pure functions of tensors: no model and no process group inside."""
