"""Image-to-image retrieval: pictures like a picture, by their vectors alone (COOKIE card, section 6).

Pictures are alike that are of one class (column "cls"); where rows have no classes, those that a text of the corpus is
right for both. Every picture is a query among all others. Beside the system stand chance and the pictures' colours: the
correlation of 8 x 8 thumbnails, which is what is left when nothing was learnt.
"""

import time
from typing import Any

import numpy as np
from torch import Tensor

from tuwen.data.batch import Images
from tuwen.data.classes import class_names
from tuwen.data.corpus import Corpus
from tuwen.errors import UserError
from tuwen.predictor import Predictor, vectors
from tuwen.tasks.encoding import looked_at
from tuwen.tasks.likeness import HEADINGS, chance_of, cosines, measure_likeness, rows_of_likeness, sharing
from tuwen.tasks.marks import Marks, pictures_shown
from tuwen.tasks.task import Task


def evaluate_image_retrieval(
    predictor: Predictor,
    corpus: Corpus,
    *,
    batch_size: int = 64,
    limit: int | None = None,
    languages=None,
    marks: Marks | None = None,
) -> dict[str, Any]:
    """Any-hit recalls and mean average precision in percent: `{"vectors": {"r1", .., "map"}, "colours", "chance"}`.

    limit: at most so many pictures. languages: read by nothing here; what every task is given.

    Raises:
        UserError: no two pictures are alike, a system without vectors of pictures, or none can be read.
    """
    began = time.monotonic()
    with predictor.evaluating():
        rows, groups, rule = _groups(corpus, limit)
        seen = looked_at(predictor, corpus, rows, batch_size, lambda images: _vector(predictor, images))
    place = {row: k for k, row in enumerate(rows)}
    truth = sharing([groups[place[row]] for row in seen.rows.tolist()])
    if not len(truth.images):
        raise UserError(f"corpus {corpus.name}, split {corpus.split}: no two pictures are alike ({rule})")

    def tell(queries: np.ndarray, precision: np.ndarray) -> None:
        if marks is not None:
            marks.add("all", precision, pictures_shown(corpus, seen.rows[queries]))

    colours = seen.thumbnails - seen.thumbnails.mean(1, keepdim=True)  # their cosine is a correlation
    return {
        "system": predictor.name,
        "corpus": corpus.name,
        "split": corpus.split,
        "task": "image_retrieval",
        "vectors": measure_likeness(cosines(seen.features, seen.features), truth, alone=True, tell=tell),
        "colours": measure_likeness(cosines(colours, colours), truth, alone=True),
        "chance": chance_of(truth, alone=True),
        "images": len(seen.rows),
        "queries": int((np.diff(truth.start) > 0).sum()),
        "alike": rule,
        "broken": dict(seen.broken),
        "seconds": time.monotonic() - began,
    }


def _vector(predictor: Predictor, images: Images) -> Tensor:
    vector = vectors(predictor.encode(images))
    if vector is None:
        raise predictor.system.lacks("image_retrieval", "it has no vectors of pictures")
    return vector


def _groups(corpus: Corpus, limit: int | None) -> tuple[list[int], list[list[int]], str]:
    """Rows of distinct pictures, the groups each is in, and what makes two pictures alike."""
    names = class_names(corpus)
    if any(name is not None for name in names):
        known = {name: k for k, name in enumerate(dict.fromkeys(names))}
        rows = [row for row in corpus.gallery().rows if names[row] is not None][:limit]
        return rows, [[known[names[row]]] for row in rows], "of one class"
    gallery = corpus.gallery(limit=limit)
    texts_of = gallery.relevance.transpose()
    return gallery.rows, [texts_of.images_of(k).tolist() for k in range(len(texts_of))], "a text is right for both"


class ImageRetrieval(Task):
    what, metric = "pictures like a picture", "recall at k, mAP"
    figure = "vectors.map"
    why, needs = "each picture has a vector", ("encode_images encode_texts vectors", "sees_alone")

    def measure(self, predictor, head, corpus, **options):
        return evaluate_image_retrieval(predictor, corpus, **options)

    def table(self, measured):
        remark = f"{measured['queries']} of {measured['images']} pictures asked, alike: {measured['alike']}; percent"
        return remark, HEADINGS, rows_of_likeness(measured["system"], measured)
