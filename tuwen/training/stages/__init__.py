"""Recipes of several stages: training, and what else a recipe can do; each stage is a folder, done once."""
