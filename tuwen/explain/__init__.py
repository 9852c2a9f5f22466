"""Where each word of a text is found in a picture, and pictures of that."""

from tuwen.explain.maps import Explanation, explain, word_maps

__all__ = ["Explanation", "explain", "word_maps"]
