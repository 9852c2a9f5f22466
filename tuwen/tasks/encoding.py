"""What tasks are built from: pictures and texts encoded once, the truth over them, the languages measured."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tuwen.data.batch import Images, blank_images, places_of
from tuwen.data.corpus import Caption, Corpus, Gallery, Relevance, captions_apart, languages_and_texts
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.predictor import Predictor
from tuwen.systems.system import System

UNTOLD = '; a script alone does not tell these: name the language, as "texts": {"ru": [...]} or a column text_ru'
THUMBNAIL = 8  # pixels a side


@dataclass(frozen=True)
class EncodedPictures:
    """Encoded pictures: `rows` [P] int64 corpus rows in order, `broken` counts by reason of those left out."""

    encoded: Encoded
    rows: np.ndarray
    broken: Counter[str]


def encode_pictures(predictor: Predictor, corpus: Corpus, rows: Sequence[int], batch_size: int) -> EncodedPictures:
    """The given rows' pictures; those that cannot be read are left out and counted by reason.

    Raises:
        UserError: if none can be read.
    """
    readable: list[int] = []
    broken: Counter[str] = Counter()

    def read() -> Iterator[Images]:
        for images, batch_rows, faults in predictor.read(corpus, rows, batch_size):
            broken.update(faults)
            readable.extend(batch_rows)
            if batch_rows:
                yield images

    encoded = predictor.pictures(read(), total=len(rows))
    if not readable:
        raise _none_readable(corpus, rows)
    return EncodedPictures(encoded, np.array(readable, dtype=np.int64), broken)


def picture_states(system: System, images: Images) -> Tensor:
    """[P, N, W] what the image tower makes of pictures, before any projection.

    Raises:
        UserError: a system without an image tower.
    """
    tower: Any = getattr(getattr(system, "encoders", None), "image", None)
    if tower is None:
        raise system.lacks("encode_images", "it has no image tower")
    return tower.tokens(images)


def picture_features(system: System, images: Images) -> Tensor:
    """[B, W] `picture_states` as the tower pools them, of a clip the mean over its frames.

    What a linear probe and a classifier of pictures read (FLAVA card, section 6).
    """
    states = picture_states(system, images)
    pooled = cast(Any, system).encoders.image.pooled(states)
    return pooled if images.owner is None else pooled[places_of(images.owner)].mean(1)


@torch.no_grad()
def width_of(system: System, of: Callable[[Images], Tensor]) -> int:
    """The last size of what is made of a picture, told by a blank one."""
    training = system.training
    system.eval()
    width = of(blank_images(system.config.image.side)).shape[-1]
    system.train(training)
    return width


@dataclass(frozen=True)
class LookedAt:
    """Pictures as features [P, W] and as thumbnails [P, 192] in 0..1, 8 x 8 in colours; rows, broken: of the corpus."""

    features: Tensor
    thumbnails: Tensor
    rows: np.ndarray
    broken: Counter[str]


def looked_at(
    predictor: Predictor, corpus: Corpus, rows: Sequence[int], batch_size: int, features: Callable[[Images], Tensor]
) -> LookedAt:
    """The given rows' pictures, each as `features` sees it, float32 on the CPU.

    Of a clip the first picture is the thumbnail.

    Raises:
        UserError: if none can be read.
    """
    parts, thumbnails, readable, broken = [], [], [], Counter[str]()
    for images, batch_rows, faults in predictor.read(corpus, rows, batch_size):
        broken.update(faults)
        readable += batch_rows
        if batch_rows:
            parts.append(features(images).float().cpu())
            pixels = images.part(0).pixels
            assert pixels is not None
            thumbnails.append(F.adaptive_avg_pool2d(pixels.float() / 255, THUMBNAIL).flatten(1))
    if not readable:
        raise _none_readable(corpus, rows)
    return LookedAt(torch.cat(parts), torch.cat(thumbnails), np.array(readable, dtype=np.int64), broken)


def _none_readable(corpus: Corpus, rows: Sequence[int]) -> UserError:
    return UserError(f"corpus {corpus.name}, split {corpus.split}: none of {len(rows)} pictures can be read")


def encode_captions(predictor: Predictor, captions: Sequence[Caption], batch_size: int) -> Encoded:
    """The given texts, in order, each in its language."""
    return predictor.texts(
        [caption.text for caption in captions], [caption.language for caption in captions], batch_size
    )


@dataclass(frozen=True)
class EncodedRows:
    """Rows of a task, encoded on the device: `rows` [R] of the corpus, one `Encoded` a picture, that of their texts."""

    rows: np.ndarray
    images: list[Encoded]
    texts: Encoded

    def mixed(self, what: str) -> "EncodedRows":
        """The same rows with each other's pictures ("picture") or texts ("text"): what a blind model would be given."""
        order = torch.arange(len(self.rows)).roll(max(1, len(self.rows) // 2))
        if what == "picture":
            return EncodedRows(self.rows, [image.select(order) for image in self.images], self.texts)
        return EncodedRows(self.rows, self.images, self.texts.select(order))


def encoded_rows(
    predictor: Predictor, corpus: Corpus, rows: Sequence[int], batch_size: int, broken: Counter[str], what: str
) -> Iterator[EncodedRows]:
    """The rows of a task in batches, each picture encoded once; those that cannot be read are counted in `broken`.

    what: the name of the progress bar.
    """
    asked: dict[int, list[int]] = {}  # rows by the picture they are about
    records = {row: corpus.record(row) for row in rows}
    for row in rows:
        asked.setdefault(records[row].image_id, []).append(row)
    first = [own[0] for own in asked.values()]
    for images, readable, faults in predictor.read(corpus, first, batch_size, what, corpus.pictures):
        broken.update(faults)
        if not readable:
            continue
        several = [images.part(k) for k in range(corpus.pictures)] if corpus.pictures > 1 else [images]
        pictures = [predictor.encode(part) for part in several]
        own = [(row, place) for place, shown in enumerate(readable) for row in asked[records[shown].image_id]]
        for start in range(0, len(own), batch_size):
            part = own[start : start + batch_size]
            questions = [next(languages_and_texts(records[row])) for row, _ in part]
            texts = predictor.tokens([text for _, text in questions], [language for language, _ in questions])
            places = torch.tensor([place for _, place in part])
            yield EncodedRows(
                np.array([row for row, _ in part]), [x.select(places) for x in pictures], predictor.encode(texts)
            )


def restricted(gallery: Gallery, rows: np.ndarray) -> Relevance:
    """The gallery's truth over the pictures of the given rows, in their order, with the same texts."""
    position = np.full(max(gallery.rows) + 1, -1, dtype=np.int64)
    position[rows] = np.arange(len(rows))
    place = position[np.asarray(gallery.rows, dtype=np.int64)]
    truth = gallery.relevance
    relevant = (place[truth.images_of(text)] for text in range(len(truth)))
    return Relevance.of(len(rows), [np.sort(images[images >= 0]).tolist() for images in relevant])


def pictures_of(gallery: Gallery, pictures: EncodedPictures) -> tuple[Encoded, Relevance, np.ndarray]:
    """The readable pictures of a gallery in its order, the truth over them, and their corpus rows."""
    place = {int(row): position for position, row in enumerate(pictures.rows)}
    rows = np.array([row for row in gallery.rows if row in place], dtype=np.int64)
    positions = torch.tensor([place[row] for row in rows.tolist()], dtype=torch.int64)
    whole = len(positions) == len(pictures.rows) and bool((positions == torch.arange(len(positions))).all())
    images = pictures.encoded if whole else pictures.encoded.select(positions)
    return images, restricted(gallery, rows), rows


def galleries_of(
    predictor: Predictor,
    corpus: Corpus,
    languages: Sequence[str] | None,
    limit: int | None = None,
    apart: bool = False,
) -> tuple[dict[str, Gallery], str]:
    """The gallery of each language to measure, and a note on languages that are left out (`with_texts`).

    limit: at most so many pictures. apart: equal texts stand apart (`captions_apart`).

    Raises:
        UserError: as `measured` and `with_texts`.
    """
    gallery_of = captions_apart if apart else Corpus.gallery
    galleries = {language: gallery_of(corpus, language, limit) for language in measured(predictor, corpus, languages)}
    spoken, note = with_texts(corpus, languages, {language: len(of.texts) for language, of in galleries.items()})
    return {language: galleries[language] for language in spoken}, note


def with_texts(corpus: Corpus, asked: Sequence[str] | None, texts: Mapping[str, int]) -> tuple[list[str], str]:
    """The languages that have texts, and a note on those that have none. texts: how many, by language to measure.

    Raises:
        UserError: none in a language that was asked for by name, or in any.
    """
    silent = [language for language, count in texts.items() if not count]
    if silent and (asked or len(silent) == len(texts)):
        raise UserError(f"corpus {corpus.name}, split {corpus.split}: no text in {silent[0]!r} to measure by")
    note = f"not measured: no text in {', '.join(silent)}" if silent else ""
    return [language for language in texts if language not in silent], note


def measured(predictor: Predictor, corpus: Corpus, languages: Sequence[str] | None) -> list[str]:
    """The languages to measure: those asked for, or else all of the corpus that the run knows.

    Raises:
        UserError: a language that the corpus lacks or the run does not know, or none at all.
    """
    known = predictor.languages
    for language in languages or ():
        if language not in corpus.languages:
            has = ", ".join(corpus.languages)
            raise UserError(f"corpus {corpus.name} has no language {language!r}; it has {has}")
        if language not in known:
            raise UserError(f"the run knows no language {language!r}; it was trained on {', '.join(known)}")
    chosen = list(languages or (language for language in corpus.languages if language in known))
    if not chosen:
        has = ", ".join(corpus.languages)
        hint = UNTOLD if "und" in corpus.languages else ""
        raise UserError(f"corpus {corpus.name} is in {has}; the run was trained on {', '.join(known)}{hint}")
    return chosen
