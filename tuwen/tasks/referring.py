"""Referring expressions: one box in a picture for a phrase, learnt from boxes.

The joint vector of picture and phrase asks the picture's tokens where it is: their weighted mean and its place, with
the vector, give a box (after TransVG, Deng et al. 2021, whose loss it has: L1 and GIoU). A phrase right for several
boxes is right with any of them. Accuracy is the share of phrases whose box overlaps a right one by half or more; also
the mean overlap, and whether the box's centre lies in a right box (pointing). Beside the system stand the same with
another row's picture (blind to the picture), with another row's phrase (blind to the phrase), and two fixed boxes.

Boxes are of the whole picture, learnt and measured, also where a tower reads its middle alone; what is cut off, and so
how the middle lies in the picture, the head is not told.
"""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tuwen.data import draws
from tuwen.data.batch import Batch, Images
from tuwen.data.corpus import Corpus, languages_and_texts
from tuwen.data.exercises import exercises_of
from tuwen.data.subset import Marked
from tuwen.errors import UserError
from tuwen.nn.boxes import corners
from tuwen.nn.encoded import Encoded
from tuwen.nn.grad_cam import on_grid
from tuwen.objectives.boxes import nearest_box_loss
from tuwen.predictor import Predictor
from tuwen.systems.system import Head, Losses, Needs, Progress, System
from tuwen.tasks.encoding import encoded_rows, measured, width_of
from tuwen.tasks.grounding import figures_of, overlapped
from tuwen.tasks.heads import read, width_read
from tuwen.tasks.marks import Marks
from tuwen.tasks.task import Task

MOST = 32  # right boxes of a phrase that are learnt from
WATCHED = 1000  # phrases that a validation during training looks at
BATCH = 64


class BoxHead(Head):
    """A box [B, 4] (cx, cy, w, h) for a picture and a phrase; column "target" [B, K, 4] holds the right ones' edges."""

    def __init__(self, system: System):
        super().__init__()
        width = width_read(system, 1)
        shown = width_of(system, lambda images: picture_tokens(system.encode_images(images)))
        self.query, self.key = nn.Linear(width, shown), nn.Linear(shown, shown)
        self.layers = nn.Sequential(
            nn.LayerNorm(width + shown + 2), nn.Linear(width + shown + 2, width), nn.GELU(), nn.Linear(width, 4)
        )

    def needs(self) -> Needs:
        return Needs(columns=("target",))

    def boxes(self, system: System, images: Encoded, texts: Encoded) -> Tensor:
        """[B, 4] cx, cy, w, h in 0 to 1; the place the phrase looks at is where the box's middle starts from."""
        joint, tokens = read(system, [images], texts), picture_tokens(images)
        scores = (self.key(tokens) * self.query(joint)[:, None]).sum(2) * tokens.shape[2] ** -0.5
        shares = scores.softmax(1)
        place = middle(shares)
        seen = (shares[..., None] * tokens).sum(1)
        moves = self.layers(torch.cat([joint, seen, place], 1)).float()
        start = torch.cat([torch.logit(place.float(), 1e-3), torch.full_like(place.float(), -1.0)], 1)
        return (start + moves).sigmoid()

    def losses(self, system: System, batch: Batch, progress: Progress) -> Losses:
        assert batch.images is not None
        assert batch.texts is not None
        right = batch.columns["target"]
        assert isinstance(right, Tensor)
        boxes = self.boxes(system, system.encode_images(batch.images), system.encode_texts(batch.texts))
        return Losses({"boxes": nearest_box_loss(boxes, right)})


def picture_tokens(images: Encoded) -> Tensor:
    """[B, N, W]: the picture's states on a square grid, row by row, without what stands before them."""
    states = images.states["last"] if "last" in images.states else list(images.states.values())[-1]
    cells = int(states.shape[1] ** 0.5) ** 2
    return states[:, -cells:]


def middle(shares: Tensor) -> Tensor:
    """[B, 2] (x, y) in 0 to 1: the mean place of shares [B, N] of the cells of a square grid."""
    grid = on_grid(shares)
    steps = (torch.arange(grid.shape[-1], device=shares.device, dtype=shares.dtype) + 0.5) / grid.shape[-1]
    return torch.stack([grid.sum(1) @ steps, grid.sum(2) @ steps], 1)


def evaluate_referring(
    predictor: Predictor,
    head: BoxHead,
    corpus: Corpus,
    *,
    batch_size: int = BATCH,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    marks: Marks | None = None,
) -> dict[str, Any]:
    """Percentages a language: `{"languages": {"zh": {"pointing", "iou", "iou50", "interval", "other_picture", ...}}}`.

    corpus: rows that are phrases, with a column "target". limit: at most so many phrases a language, drawn.

    Raises:
        UserError: an unknown language, no phrase in it, or none of the pictures can be read.
    """
    began = time.monotonic()
    by_language, broken, pictures = {}, Counter[str](), set[int]()
    spoken: dict[str, list[int]] = {}
    for row in range(len(corpus)):
        spoken.setdefault(next(languages_and_texts(corpus.record(row)))[0], []).append(row)
    with predictor.evaluating():
        for language in measured(predictor, corpus, languages):
            rows = spoken.get(language, [])
            own = Counter[str]()
            rows = [rows[k] for k in draws.sample(len(rows), limit, "measured")]
            found: dict[str, list[Tensor]] = {name: [] for name in ("head", "other_picture", "other_text")}
            right, shown = [], list[int]()
            for part in encoded_rows(predictor, corpus, rows, batch_size, own, "phrases"):
                records = [corpus.record(int(row)) for row in part.rows]
                right += [np.unique(np.asarray(record.columns["target"], dtype=float), axis=0) for record in records]
                shown += [record.image_id for record in records]
                given = {"head": part, "other_picture": part.mixed("picture"), "other_text": part.mixed("text")}
                for name, seen in given.items():
                    boxes = head.boxes(predictor.system, seen.images[0], seen.texts)
                    found[name].append(corners(boxes).clamp(0, 1).double().cpu())
            if right:
                named = {name: torch.cat(boxes).numpy() for name, boxes in found.items()}
                by_language[language] = _marks(named, right)
                if marks is not None:
                    marks.add(language, 100.0 * (overlapped(named["head"], right) >= 0.5), shown)
            broken, pictures = broken or own, pictures | set(shown)
    if not by_language:
        raise UserError(f"corpus {corpus.name}, split {corpus.split}: no phrase of a picture that can be read")
    return {
        "system": predictor.name,
        "corpus": corpus.name,
        "split": corpus.split,
        "task": "referring",
        "languages": by_language,
        "images": len(pictures),
        "protocol": "any box; pointing by the box's centre",
        "broken": dict(broken + Counter(corpus.skipped)),
        "seconds": time.monotonic() - began,
    }


def _marks(found: dict[str, np.ndarray], right: list[np.ndarray]) -> dict[str, Any]:
    by_name = {name: figures_of((boxes[:, :2] + boxes[:, 2:]) / 2, boxes, right) for name, boxes in found.items()}
    marks = by_name["head"]
    share = marks["iou50"] / 100
    interval = 196 * (share * (1 - share) / len(right)) ** 0.5
    blind = {
        name: {key: by_name[name][key] for key in ("pointing", "iou", "iou50")}
        for name in ("other_picture", "other_text")
    }
    return {**marks, "interval": interval, **blind}


class Referring(Task):
    what, metric = "a box for a phrase, learnt from boxes", "accuracy at IoU 0.5"
    figure = "languages.*.iou50"
    why, needs = "picture and phrase are read together", ("fuse has_places",)
    verb, learnt = "ground", True

    def rows(self, corpus, split):
        phrases = exercises_of(corpus, "phrases")
        targets = []
        for row in range(len(phrases)):
            boxes = np.array(phrases.record(row).columns["boxes"], dtype=np.float32)[:MOST]
            targets.append(np.concatenate([boxes, boxes[-1:].repeat(MOST - len(boxes), 0)]))
        return Marked(phrases, np.arange(len(phrases)), "target", targets)

    def head(self, system, tokenizer):
        return BoxHead(system)

    def measure(self, predictor, head, corpus, **options):
        return evaluate_referring(predictor, head, corpus, **options)

    def validate(self, predictor, head, corpus):
        by_language = self.measure(predictor, head, corpus, limit=WATCHED)["languages"].values()
        return {"score": float(np.mean([marks["iou50"] for marks in by_language]))}

    def use(self, predictor, head, pictures, texts, **how):
        """A box (x0, y0, x1, y1 in 0 to 1) for each picture and phrase."""
        if texts is None or len(pictures) != len(texts):
            raise UserError("give as many phrases as pictures")
        boxes: list[tuple[float, ...]] = []
        with predictor.evaluating():
            for start in range(0, len(texts), BATCH):
                pixels = torch.stack([predictor.pixels(picture) for picture in pictures[start : start + BATCH]])
                images, phrases = (
                    predictor.encode(part) for part in (Images(pixels), predictor.tokens(texts[start : start + BATCH]))
                )
                boxes += map(tuple, corners(head.boxes(predictor.system, images, phrases)).clamp(0, 1).tolist())
        return boxes

    def table(self, measured):
        rows = []
        names = (("other_picture", "another row's picture"), ("other_text", "another row's phrase"))
        for language, own in measured["languages"].items():
            boxes = [(measured["system"], own), *((name, own[key]) for key, name in names)]
            for name, marks in [*boxes, ("centre box", own["centre"]), ("whole picture", own["whole"])]:
                share = f"{marks['iou50']:.1f}" + (f" +- {marks['interval']:.1f}" if "interval" in marks else "")
                rows.append((language, name, f"{marks['pointing']:.1f}", f"{marks['iou']:.1f}", share))
        head = ("language", "box", "pointing", "IoU", "IoU >= 0.5")
        return f"{measured['images']} images, in percent", head, rows
