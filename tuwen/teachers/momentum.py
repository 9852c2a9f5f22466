"""A momentum teacher: exponential moving averages of named parts of a student."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


class Momentum(nn.Module):
    """A copy of each named part under the part's own name: `teacher.encoders` follows `student.encoders`, and
    `teacher.head.decoder` follows `student.head.decoder`.

    The copies take no gradient, are no optimizer's business, and stay in evaluation mode: a teacher without
    dropout noise. (ALBEF's official code leaves them in training mode; evaluation mode is the stable choice.)
    """

    def __init__(self, student: nn.Module, parts: Sequence[str], decay: float = 0.995, rises: bool = True):
        """rises: the momentum grows to `decay`, see `update`; False: it is `decay` throughout, as published."""
        super().__init__()
        self.parts, self.decay, self.rises = tuple(parts), decay, rises
        for part in self.parts:
            copied = copy.deepcopy(student.get_submodule(part)).requires_grad_(False)
            *owners, name = part.split(".")
            place: nn.Module = self
            for owner in owners:
                if not hasattr(place, owner):
                    place.add_module(owner, nn.Module())
                place = place.get_submodule(owner)
            place.add_module(name, copied)
        self.eval()

    def train(self, mode: bool = True) -> "Momentum":
        return super().train(False)

    def copy_student(self, student: nn.Module) -> None:
        """Makes every copy equal to its part."""
        self._mix(student, 0.0)

    def update(self, student: nn.Module, step: int) -> None:
        """theta' <- m theta' + (1 - m) theta with m = min(decay, (1 + step) / (10 + step)), or `decay` if not `rises`.

        The bound lets a teacher of a student trained from scratch follow its first steps; it passes
        0.995 after 1,790 of them.
        """
        self._mix(student, min(self.decay, (1 + step) / (10 + step)) if self.rises else self.decay)

    @contextmanager
    def standing_in(self, student: nn.Module) -> Iterator[None]:
        """While this lasts the student's parts are the copies; for what is asked of the teacher without gradient."""
        places = [(*part.rpartition("."), student.get_submodule(part)) for part in self.parts]
        for part, (owner, _, name, _) in zip(self.parts, places, strict=True):
            student.get_submodule(owner)._modules[name] = self.get_submodule(part)
        try:
            yield
        finally:
            for owner, _, name, own in places:
                student.get_submodule(owner)._modules[name] = own

    @torch.no_grad()
    def _mix(self, student: nn.Module, decay: float) -> None:
        for part in self.parts:
            mine, theirs = self.get_submodule(part), student.get_submodule(part)
            for average, parameter in zip(mine.parameters(), theirs.parameters(), strict=True):
                average.lerp_(parameter, 1 - decay)
            for copied, buffer in zip(mine.buffers(), theirs.buffers(), strict=True):
                copied.copy_(buffer)
