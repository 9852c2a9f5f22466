"""What keeping less costs: how far final scores from the kept parts of pictures are off."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tuwen.nn.encoded import Encoded
from tuwen.predictor import Predictor
from tuwen.search.index import Index
from tuwen.search.parts import Layout
from tuwen.search.pictures import Picture

SAMPLE = 32  # pictures compared
TEXTS = 16
SECONDS = 15.0  # most time a comparison takes


class LossProbe:
    """Looks at the first pictures of a build, whole, and then compares scores with what the record keeps of them."""

    def __init__(self, load: Callable[[], Predictor], layout: Layout):
        """load: gives the predictor, once there are pictures to look at."""
        self.load, self.layout = load, layout
        self.pictures: dict[str, Encoded] = {}  # by the id of the entry
        self.texts: list[str] = []
        self.loss: dict[str, float] = {}

    def watch(self, ids: Sequence[str], pictures: Sequence[Picture], encoded: Encoded) -> None:
        """Called with every batch of a build."""
        system = self.load().system
        again = self.layout.budget == 0 and (system.matches() or system.can("scores"))
        if not self.layout.parts and not again:
            return
        for row, (name, picture) in enumerate(zip(ids, pictures, strict=True)):
            if name in self.pictures or len(self.pictures) < SAMPLE:  # an id given twice is what it was last
                self.pictures[name] = encoded.select(torch.tensor([row]))
                texts = [text for own in picture.texts.values() for text in list(own)[:1]]
                self.texts += texts[: TEXTS - len(self.texts)]

    def result(self, index: Index) -> dict[str, float]:
        """Differences of final scores ("pairs", "mean", "largest"), and the share of texts with the same best picture
        ("best_kept"); empty where there was too little to compare."""
        places = index.snapshot.among(list(self.pictures))
        if not self.texts or len(places) < SAMPLE // 2:
            return {}
        exact = Encoded.cat([self.pictures[name] for name in places])
        positions = np.array(list(places.values()))
        stored = index.encoded(index.snapshot, positions)
        if stored.pooled is not None and not self.load().system.can(
            "scores"
        ):  # the first stage's score is the record's
            own = index.vectors(index.snapshot, positions)
            exact, stored = replace(exact, pooled=own), replace(stored, pooled=own)
        differences, same = [], []
        began = time.monotonic()
        for text in self.texts:
            if time.monotonic() - began > SECONDS:
                break
            of_exact, of_stored = (self._scores(pictures, text) for pictures in (exact, stored))
            differences.append((of_exact - of_stored).abs())
            same.append(bool(of_exact.argmax() == of_stored.argmax()))
        off = torch.cat(differences)
        self.loss = {"pairs": len(off), "mean": float(off.mean()), "largest": float(off.max())}
        self.loss["best_kept"] = sum(same) / len(same)
        return self.loss

    def line(self) -> str:
        """The result for people."""
        layout, loss = self.layout, self.loss
        form = f"{layout.precision}, {layout.budget} tokens" if layout.budget else layout.precision
        form = "a JPEG, encoded again" if layout.budget == 0 else form
        return (
            f"kept as {form}: final scores of {loss['pairs']:,} pairs are off by {loss['mean']:.2g} on average, "
            f"{loss['largest']:.2g} at most; {loss['best_kept']:.0%} of texts keep their best picture"
        )

    def _scores(self, pictures: Encoded, text: str) -> Tensor:
        """[I] final scores of the pictures."""
        asked = self.load().texts([text])
        first = self.load().first(pictures, asked).t2i[:, 0]
        return self.load().final(pictures, asked.select(torch.zeros(len(pictures), dtype=torch.int64)), first)
