"""Grounding: where in a picture is what a phrase says? Pointing accuracy and overlap, by language.

A system locates by its own means, or it matches and Grad-CAM tells which places its match hung on, with no box ever
learnt from (ALBEF card, section 6): the heat is brought to the picture's size, its tight box taken.
Protocol: a phrase right for several boxes of its picture is right with any of them ("any box"). Pointing (Zhang et al.
2016): the point with the most heat, or the centre of the best box, lies in a right box. IoU: of the best box with the
nearest right one; accuracy at 0.5 as in Flickr30k Entities. Beside a system stand two boxes that look at nothing: the
whole picture, and one in the middle whose size is the mean of all right boxes, which no fixed box can know.

Where rows bring boxes that a detector found (column "boxes") and the system gives heat, the best of these is taken as
well, by the heat inside over the square root of the area (ALBEF): accuracy at 0.5, beside any box and the largest.
"""

import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tuwen.data.batch import Images, Texts
from tuwen.data.corpora.faults import Faults
from tuwen.data.corpus import Corpus
from tuwen.data.fit import on_part, on_whole
from tuwen.data.grounding import Phrase, phrases_of
from tuwen.data.images import load
from tuwen.data.loader import images_of
from tuwen.errors import UserError
from tuwen.predictor import Predictor
from tuwen.systems.system import Located
from tuwen.tasks.encoding import measured
from tuwen.tasks.marks import Marks, pictures_shown
from tuwen.tasks.task import Task

BATCH = 64


def evaluate_grounding(
    predictor: Predictor,
    corpus: Corpus,
    *,
    batch_size: int = 64,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    marks: Marks | None = None,
) -> dict:
    """Percentages a language: `{"languages": {"zh": {"pointing", "iou", "iou50", "phrases", "centre", "whole"}}, ...}`.

    limit: at most so many pictures. Of a system that gives heat alone the overlap is that of its heat's tight box.
    "proposals", where rows bring boxes: {"iou50", "any", "largest"}. All boxes are of the whole picture, also where a
    tower reads its middle alone.

    Raises:
        UserError: the system cannot locate, the corpus knows no boxes, an unknown language, or no readable picture.
    """
    began = time.monotonic()
    if not (predictor.system.can("locate") or predictor.system.can("match_heat")):
        raise predictor.system.lacks("locate", "it has no way to point into a picture")
    wrong = Faults(corpus.on_bad, corpus.name if corpus.private else "")
    every = phrases_of(corpus, limit, wrong)
    figures, broken = {}, Counter[str]()
    with predictor.evaluating():
        for language in _languages(predictor, corpus, every, languages):
            asked = [phrase for phrase in every if phrase.language == language]
            figures[language], faults = _marks(predictor, corpus, asked, language, batch_size, marks)
            broken = broken or faults
    return {
        "system": predictor.name,
        "corpus": corpus.name,
        "split": corpus.split,
        "task": "grounding",
        "languages": figures,
        "images": len({phrase.row for phrase in every}) - sum(broken.values()),
        "protocol": "any box; pointing by the most heat or the best box's centre",
        "broken": dict(broken + wrong.counts),
        "seconds": time.monotonic() - began,
    }


def _languages(predictor: Predictor, corpus: Corpus, every: list[Phrase], asked) -> list[str]:
    """Languages the phrases are in; a corpus without texts has none of its own to check against."""
    spoken = sorted({phrase.language for phrase in every})
    if corpus.languages:
        spoken = [language for language in measured(predictor, corpus, asked) if language in spoken]
    spoken = [language for language in asked or spoken if language in spoken and language in predictor.languages]
    if not spoken:
        raise UserError(f"corpus {corpus.name}: no phrase in a language asked for that the run knows")
    return spoken


def _marks(
    predictor: Predictor,
    corpus: Corpus,
    asked: list[Phrase],
    language: str,
    batch_size: int,
    marks: Marks | None = None,
):
    """(figures of one language, broken pictures by reason)."""
    right, shown = list[np.ndarray](), list[int]()
    points, boxes, chosen_boxes = [], [], list[tuple[np.ndarray, np.ndarray]]()
    broken: Counter[str] = Counter()
    unreadable: set[int] = set()
    phrases = [phrase.text for phrase in asked]
    for places, texts in predictor.token_batches(phrases, language, batch_size, "phrases"):
        rows = [asked[k].row for k in places]
        distinct = [row for row in dict.fromkeys(rows) if row not in unreadable]
        images, readable, faults = images_of(corpus, distinct, predictor.fit)
        broken.update(faults)
        unreadable |= set(distinct) - set(readable)
        chosen = torch.tensor([k for k, row in enumerate(rows) if row in readable], dtype=torch.int64)
        if not len(chosen):
            continue
        pictures = images.select(torch.tensor([readable.index(rows[k]) for k in chosen.tolist()], dtype=torch.int64))
        located = locate(predictor, pictures.to(predictor.device), texts.select(chosen.to(predictor.device)))
        seen = None if pictures.seen is None else pictures.part(0).seen  # of a clip's frames, which are of one size
        points.append(_on_whole(point_of(located), seen))
        boxes.append(_on_whole(box_of(located), seen))
        right += [asked[places[k]].boxes for k in chosen.tolist()]
        shown += [rows[k] for k in chosen.tolist()]
        if located.heat is not None:
            heat = located.heat.double().cpu()
            given = [_proposals(corpus, rows[k]) for k in chosen.tolist()]
            parts = [None] * len(heat) if seen is None else list(seen[:, None].double())
            for own_heat, part, own in zip(heat, parts, given, strict=True):
                chosen_boxes.append((own, best_proposal(own_heat, part, own)))
    if not right:
        raise UserError(f"corpus {corpus.name}, split {corpus.split}: none of the pictures can be read")
    if marks is not None:
        marks.add(language, 100.0 * pointed(torch.cat(points).numpy(), right), pictures_shown(corpus, shown))
    figures = figures_of(torch.cat(points).numpy(), torch.cat(boxes).numpy(), right)
    if chosen_boxes and all(len(boxes) for boxes, _ in chosen_boxes):
        figures["proposals"] = _among(chosen_boxes, right)
    return figures, broken


def locate(predictor: Predictor, pictures: Images, texts: Texts) -> Located:
    """Where text n is in picture n: by the system's own means, or by the heat of its match at the pictures' size."""
    system = predictor.system
    if system.can("locate"):
        return system.locate(pictures, texts)
    heat = system.match_heat(predictor.encode(pictures), predictor.encode(texts))
    side = predictor.fit.side
    return Located(heat=F.interpolate(heat[:, None], (side, side), mode="bicubic", align_corners=False)[:, 0])


def _proposals(corpus: Corpus, row: int) -> np.ndarray:
    """[n, 4] float64 of the row's column "boxes", x0, y0, x1, y1 in 0..1; none where it has none."""
    return np.array(corpus.record(row).columns.get("boxes") or [], dtype=np.float64).reshape(-1, 4)


def best_proposal(heat: Tensor, part: Tensor | None, boxes: np.ndarray) -> np.ndarray:
    """[4] of boxes [n, 4] the one with the most heat [h, w] inside over the root of its area; cells count by share.

    part: [1, 4] of the picture that the heat lies over; None: all of it.
    """
    if not len(boxes):
        return np.zeros(4)
    edges = torch.from_numpy(boxes) if part is None else on_part(torch.from_numpy(boxes), part)
    inside = []
    for low, high, cells in ((edges[:, 1], edges[:, 3], heat.shape[0]), (edges[:, 0], edges[:, 2], heat.shape[1])):
        place = torch.arange(cells, dtype=torch.float64)
        reach = torch.minimum(high[:, None] * cells, place + 1) - torch.maximum(low[:, None] * cells, place)
        inside.append(reach.clamp(min=0))  # [n, cells]
    area = (edges[:, 2:] - edges[:, :2]).prod(1).clamp(min=1e-12)
    score = torch.einsum("nh,hw,nw->n", inside[0], heat.double(), inside[1]) / area.sqrt()
    return boxes[int(score.argmax())]


def _among(chosen: Sequence[tuple[np.ndarray, np.ndarray]], right: list[np.ndarray]) -> dict[str, float]:
    """Percent of phrases whose chosen proposal overlaps a right box by half; any proposal's share; the largest's."""

    def good(box: np.ndarray, right_boxes: np.ndarray) -> bool:
        return bool(box_overlap(box, right_boxes).max() >= 0.5)

    own, every, largest = [], [], []
    for (boxes, box), right_boxes in zip(chosen, right, strict=True):
        hits = [good(other, right_boxes) for other in boxes]
        own.append(good(box, right_boxes))
        every.append(np.mean(hits))
        largest.append(hits[int((boxes[:, 2:] - boxes[:, :2]).prod(1).argmax())])
    return {name: 100 * float(np.mean(x)) for name, x in (("iou50", own), ("any", every), ("largest", largest))}


def _on_whole(places: Tensor, seen: Tensor | None) -> Tensor:
    """Places in what the tower read of each picture, as places in the whole picture, where the right boxes are."""
    places = places.double().cpu()
    return places if seen is None else on_whole(places, seen.double())


def point_of(located: Located) -> Tensor:
    """[N, 2] (x, y) in 0..1: the middle of the cell with the most heat, or of the best box."""
    if located.heat is None:
        box = box_of(located)
        return (box[:, :2] + box[:, 2:]) / 2
    height, width = located.heat.shape[1:]
    peak = located.heat.flatten(1).argmax(1)
    return torch.stack([(peak % width + 0.5) / width, (peak // width + 0.5) / height], 1)


def box_of(located: Located) -> Tensor:
    """[N, 4] the best box, or the tight box of the cells with at least half of the most heat."""
    if located.boxes is not None:
        return located.boxes[:, 0]
    heat = located.heat
    assert heat is not None
    low = heat.flatten(1).amin(1)[:, None, None]
    warm = heat - low >= (heat.flatten(1).amax(1)[:, None, None] - low) / 2
    edges = []
    for cells in (warm.any(1), warm.any(2)):  # columns give x, rows give y
        size = cells.shape[1]
        first = cells.int().argmax(1)
        last = size - cells.flip(1).int().argmax(1)
        edges.append((first / size, last / size))
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], 1)


def figures_of(points: np.ndarray, boxes: np.ndarray, right: list[np.ndarray]) -> dict:
    size = np.concatenate([right_boxes[:, 2:] - right_boxes[:, :2] for right_boxes in right]).mean(0)
    middle = np.concatenate([(1 - size) / 2, (1 + size) / 2])
    centre = np.full_like(points, 0.5)
    return {
        **_measure(points, boxes, right),
        "phrases": len(right),
        "centre": _measure(centre, np.broadcast_to(middle, boxes.shape), right),
        "whole": _measure(centre, np.broadcast_to([0.0, 0.0, 1.0, 1.0], boxes.shape), right),
    }


def _measure(points: np.ndarray, boxes: np.ndarray, right: list[np.ndarray]) -> dict[str, float]:
    """Percent of points in a right box, mean IoU in percent, and percent of boxes with IoU of at least 0.5."""
    hits, overlaps = pointed(points, right), overlapped(boxes, right)
    return {
        "pointing": 100 * float(np.mean(hits)),
        "iou": 100 * float(overlaps.mean()),
        "iou50": 100 * float((overlaps >= 0.5).mean()),
    }


def pointed(points: np.ndarray, right: list[np.ndarray]) -> np.ndarray:
    """[n] bool: whether each point lies in any right box."""
    return np.array([bool(point_inside(point, boxes).any()) for point, boxes in zip(points, right, strict=True)])


def overlapped(boxes: np.ndarray, right: list[np.ndarray]) -> np.ndarray:
    """[n] the greatest overlap of each box with a right one."""
    return np.array([box_overlap(box, boxes_right).max() for box, boxes_right in zip(boxes, right, strict=True)])


def point_inside(point: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[n] bool: which boxes [n, 4] hold the point, edges included."""
    return np.all((boxes[:, :2] <= point) & (point <= boxes[:, 2:]), axis=1)


def box_overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[n] intersection over union of a box [4] with boxes [n, 4]."""
    shared = np.clip(np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]), 0, None).prod(1)
    area = np.clip(box[2:] - box[:2], 0, None).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return shared / (area - shared)


class Grounding(Task):
    what, metric = "where in a picture a phrase is", "pointing, IoU"
    figure = "languages.*.pointing"
    why, needs = "a place is told for a phrase", ("locate", "match_heat")
    verb = "ground"

    def use(self, predictor, head, pictures, texts, **how):
        """A box (x0, y0, x1, y1 in 0 to 1 of the whole picture) for each picture and phrase."""
        boxes: list[tuple[float, ...]] = []
        with predictor.evaluating():
            for start in range(0, len(texts), BATCH):
                whole = [load(picture) for picture in pictures[start : start + BATCH]]
                seen = torch.tensor([predictor.fit.part(*picture.shape[1:]) for picture in whole])
                images = Images(torch.stack([predictor.pixels(picture) for picture in whole])).to(predictor.device)
                located = locate(predictor, images, predictor.tokens(texts[start : start + BATCH]))
                boxes += map(tuple, _on_whole(box_of(located), seen).tolist())
        return boxes

    def measure(self, predictor, head, corpus, **options):
        return evaluate_grounding(predictor, corpus, **options)

    def table(self, measured):
        rows = []
        for language, own in measured["languages"].items():
            boxes = ((measured["system"], own), ("centre box", own["centre"]), ("whole picture", own["whole"]))
            for name, marks in boxes:
                rows.append((language, name, *(f"{marks[key]:.1f}" for key in ("pointing", "iou", "iou50"))))
            among = own.get("proposals", {})
            for key, name in (("iou50", "best given box"), ("any", "any given box"), ("largest", "largest given box")):
                if key in among:
                    rows.append((language, name, "-", "-", f"{among[key]:.1f}"))
        head = ("language", "box", "pointing", "IoU", "IoU >= 0.5")
        return f"{measured['images']} images, in percent", head, rows
