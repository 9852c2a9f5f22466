"""Scenes: the corpus that needs no download. Emoji drawings on grounds, with captions whose truth is known."""

from tuwen.data.corpora.scenes.corpus import Scenes, older
from tuwen.data.corpora.scenes.scene import Object, Scene
from tuwen.data.corpora.scenes.truth import holds, holds_pair, relevance

__all__ = ["Object", "Scene", "Scenes", "holds", "holds_pair", "older", "relevance"]
