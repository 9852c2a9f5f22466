"""What speed costs: how far scores from kept parts are off, and how much of a full re-ranking two stages keep."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from tuwen.model import Model
from tuwen.nn.encoded import Encoded
from tuwen.search.parts import Layout

SAMPLE = 32  # pictures compared
TEXTS = 16
SECONDS = 15.0  # most time a comparison takes


class LossProbe:
    """Looks at the first pictures of a build, whole, and then compares scores with what the record keeps of them."""

    def __init__(self, model: Model, layout: Layout):
        self.model, self.layout = model, layout
        self.pictures: list[Encoded] = []
        self.texts: list[str] = []
        self.found: dict[str, float] = {}

    def watch(self, pictures: Sequence, encoded: Encoded) -> None:
        """Called with every batch of a build."""
        room = SAMPLE - sum(map(len, self.pictures))
        if room > 0 and self.layout.parts:
            self.pictures.append(encoded.select(torch.arange(min(room, len(encoded)))))
            texts = [text for picture in pictures[:room] for own in picture.texts.values() for text in list(own)[:1]]
            self.texts += texts[: TEXTS - len(self.texts)]

    def result(self) -> dict[str, float]:
        """Differences of final scores ("pairs", "mean", "largest"), and the share of texts with the same best picture
        ("best_kept"); empty where there was too little to compare."""
        if not self.pictures or not self.texts:
            return {}
        exact = Encoded.cat(self.pictures)
        if len(exact) < SAMPLE // 2:
            return {}
        kept = self.layout.read(self.layout.write(exact), exact.pooled)
        differences, same = [], []
        began = time.monotonic()
        for text in self.texts:
            if time.monotonic() - began > SECONDS:
                break
            one, two = (self._scores(pictures, text) for pictures in (exact, kept))
            differences.append((one - two).abs())
            same.append(bool(one.argmax() == two.argmax()))
        off = torch.cat(differences)
        self.found = {"pairs": len(off), "mean": float(off.mean()), "largest": float(off.max())}
        self.found["best_kept"] = sum(same) / len(same)
        return self.found

    def line(self) -> str:
        """The result for people."""
        kept = self.layout.precision + (f", {self.layout.budget} tokens" if self.layout.budget else "")
        found = self.found
        return (
            f"kept as {kept}: final scores of {found['pairs']:,} pairs are off by {found['mean']:.2g} on average, "
            f"{found['largest']:.2g} at most; {found['best_kept']:.0%} of texts keep their best picture"
        )

    @torch.no_grad()
    def _scores(self, pictures: Encoded, text: str) -> Tensor:
        """[I] final scores of the pictures."""
        system, device = self.model.system, self.model.device
        asked = system.encode_texts(self.model.tokens([text]))
        pictures = pictures.to(device).map(lambda x: x.float() if x.is_floating_point() else x)
        first = system.scores(pictures, asked).t2i[:, 0] if _scored(system, pictures) else torch.zeros(len(pictures))
        if not system.can("match"):
            return first.float().cpu()
        match = system.match(pictures, asked.select(torch.zeros(len(pictures), dtype=torch.int64)))
        return system.rerank(match, first.to(match.device)).float().cpu()


def _scored(system, pictures: Encoded) -> bool:
    return pictures.pooled is not None or system.can("scores")
