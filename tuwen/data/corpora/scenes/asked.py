"""Exercises on scenes as a corpus: rows are questions, statements, hypotheses or phrases, in the form of `asked`."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuwen.data import draws
from tuwen.data.corpora import asked
from tuwen.data.corpora.scenes import drawings
from tuwen.data.corpora.scenes.balanced import EACH, Exercise, Group, World, make_group
from tuwen.data.corpora.scenes.scene import Scene, boxes, common_of, render
from tuwen.data.corpus import Corpus, Record
from tuwen.errors import UserError

VERSION = 1  # raise when the same (seed, number) gives another exercise


class SceneExercises(Corpus):
    """Exercises of a kind (`balanced.MAKERS`) over scenes drawn for them, pure functions of (seed, split, number).

    Rows of a group follow one another, each exercise in every language of the corpus in turn, so that what is balanced
    within a group is so over any whole number of groups. count: rows. Columns beside those of the form: "kind";
    "scenes" as JSON; "claim" where there is one; "held_out" ("", "pair" or "concept": what training never shows).

    Raises:
        UserError: no language that there are sentences in.
    """

    name, notice = "scenes", drawings.NOTICE

    def __init__(
        self,
        kind: str,
        split: str,
        count: int,
        seed: int,
        side: int,
        languages: Sequence[str],
        things: int,
        objects: int,
    ):
        self.kind, self.split, self.count, self.seed, self.side = kind, split, count, seed, side
        self.languages = tuple(language for language in languages if language in ("en", "zh"))
        if not self.languages:
            raise UserError(f"scenes: exercises are in en and zh, not in {', '.join(languages)}")
        self.world = World(split, common_of(things), objects)
        self.pictures = 2 if kind == "pair statements" else 1
        parts = (VERSION, drawings.versions(), kind, split, count, seed, side, self.languages, things, objects)
        self.fingerprint = hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return self.count

    def shown(self, row: int) -> Sequence[Tensor]:
        return [torch.from_numpy(render(s, self.side)).permute(2, 0, 1).contiguous() for s in self.scenes(row)]

    def image(self, row: int) -> Tensor:
        return self.shown(row)[0]

    def scenes(self, row: int) -> list[Scene]:
        """What the row's pictures show."""
        group, exercise, _ = self._exercise(row)
        return [group.scenes[k] for k in exercise.pictures]

    def image_ids(self) -> np.ndarray:
        return np.array([self._identity(row, self._exercise(row)[1]) for row in range(len(self))], dtype=np.int64)

    def record(self, row: int) -> Record:
        group, exercise, language = self._exercise(row)
        scenes = [group.scenes[k] for k in exercise.pictures]
        columns = {
            **self._form(exercise, language, scenes),
            "scenes": [scene.as_json() for scene in scenes],
            "held_out": next((scene.held_out for scene in scenes if scene.held_out), ""),
        }
        if exercise.claim is not None:
            columns["claim"] = exercise.claim
        name = f"scenes-{self.seed}-{self.split}-{self.kind.replace(' ', '-')}-{row}"
        return Record(name, {language: [exercise.words[language]]}, self._identity(row, exercise), columns)

    def _form(self, exercise: Exercise, language: str, scenes: Sequence[Scene]) -> Mapping[str, Any]:
        """The columns of `asked`."""
        text, answer, kind = exercise.words[language], exercise.answer, exercise.kind
        if self.kind in ("questions", "groups"):
            return asked.question(text, [answer[language]], language, kind=kind)[2]
        if self.kind == "phrases":
            edges = [edge / self.side for edge in boxes(scenes[0], self.side)[answer]]
            return asked.phrase(text, [edges], language, kind=kind)[2]
        make = asked.entailment if self.kind == "entailment" else asked.statement
        return make(text, answer, language, kind=kind)[2]

    def _number(self, row: int) -> tuple[int, int]:
        """The group of a row, and the exercise in it."""
        if not 0 <= row < self.count:
            raise IndexError(f"row {row} of {self.count}")
        return divmod(row // len(self.languages), EACH[self.kind])

    def _exercise(self, row: int) -> tuple[Group, Exercise, str]:
        number, place = self._number(row)
        group = _group(self.kind, self.seed, self.world, number)
        return group, group.exercises[place], self.languages[row % len(self.languages)]

    def _identity(self, row: int, exercise: Exercise) -> int:
        number, _ = self._number(row)
        return draws.key("exercises", self.kind, self.seed, self.split, number, *exercise.pictures)


@lru_cache(maxsize=4096)
def _group(kind: str, seed: int, world: World, number: int) -> Group:
    return make_group(kind, seed, world, number)
