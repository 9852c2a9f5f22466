"""Every picture and every text of a gallery through its tower once, kept on the CPU for all that follows."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tuwen.data.corpus import Caption, Corpus, Gallery, Relevance
from tuwen.data.fit import Fit
from tuwen.data.loader import default_workers, image_batches, text_batches
from tuwen.data.needs import check_reads
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.systems.system import System
from tuwen.tasks.progress import batches, track

STATES_IN_FULL = 1 << 30  # bytes of fusion states kept in float32; more are kept in half precision
HALF_LARGEST = 6e4  # float16 ends at 65504


@dataclass(frozen=True)
class Pictures:
    """Encoded pictures: `rows` [P] int64 corpus rows in order, `broken` counts by reason of those left out."""

    encoded: Encoded
    rows: np.ndarray
    broken: Counter[str]


@contextlib.contextmanager
def evaluating(system: System) -> Iterator[None]:
    """The system in evaluation mode without gradients; afterwards as it was."""
    training = system.training
    system.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        system.train(training)


def device_of(system: System) -> torch.device:
    return next((tensor.device for tensor in system.parameters()), torch.device("cpu"))


def encode_pictures(system: System, corpus: Corpus, rows: Sequence[int], side: int | Fit, batch_size: int) -> Pictures:
    """The given rows' pictures; those that cannot be read are left out and counted by reason.

    Raises:
        UserError: if none can be read.
    """
    reads = system.reads(system.config)
    check_reads(corpus, reads)
    parts, read = [], []
    broken: Counter[str] = Counter()
    pictures = image_batches(corpus, rows, side, batch_size, default_workers(), reads.features)
    for images, kept, faults in track(pictures, "pictures", batches(len(rows), batch_size)):
        broken.update(faults)
        if len(kept):
            parts.append(_keep(system, system.encode_images(images.to(device_of(system))), len(rows)))
            read.append(np.asarray(kept, dtype=np.int64))
    if not parts:
        raise UserError(f"corpus {corpus.name}, split {corpus.split}: none of {len(rows)} pictures can be read")
    return Pictures(Encoded.cat(parts), np.concatenate(read), broken)


def encode_captions(
    system: System, captions: Sequence[Caption], languages: Sequence[str], tokenizer, length: int, batch_size: int
) -> Encoded:
    """The given texts, in order. languages: the table that `Texts.language` indexes."""
    pieces = [(caption.text, caption.language) for caption in captions]
    parts, places = [], []
    spans = system.reads(system.config).spans
    read = text_batches(pieces, languages, tokenizer, length, batch_size, spans)
    for place, texts in track(read, "texts", batches(len(pieces), batch_size)):
        parts.append(_keep(system, system.encode_texts(texts.to(device_of(system))), len(captions)))
        places.append(place)
    back = np.argsort(np.concatenate(places))
    return Encoded.cat(parts).select(torch.from_numpy(back))


def restricted(gallery: Gallery, rows: np.ndarray) -> Relevance:
    """The gallery's truth over the pictures of the given rows, in their order, with the same texts."""
    position = np.full(max(gallery.rows) + 1, -1, dtype=np.int64)
    position[rows] = np.arange(len(rows))
    place = position[np.asarray(gallery.rows, dtype=np.int64)]
    truth = gallery.relevance
    found = (place[truth.images_of(text)] for text in range(len(truth)))
    return Relevance.of(len(rows), [np.sort(images[images >= 0]).tolist() for images in found])


def measured(corpus: Corpus, languages: Sequence[str] | None, table: Sequence[str] | None) -> list[str]:
    """The languages to measure: those asked for, or else all of the corpus that the run's table knows.

    Raises:
        UserError: a language that the corpus lacks or the table does not know, or none at all.
    """
    known = list(table or corpus.languages)
    for language in languages or ():
        if language not in corpus.languages:
            has = ", ".join(corpus.languages)
            raise UserError(f"corpus {corpus.name} has no language {language!r}; it has {has}")
        if language not in known:
            raise UserError(f"the run knows no language {language!r}; it was trained on {', '.join(known)}")
    chosen = list(languages or (language for language in corpus.languages if language in known))
    if not chosen:
        has = ", ".join(corpus.languages)
        raise UserError(f"corpus {corpus.name} is in {has}; the run was trained on {', '.join(known)}")
    return chosen


def for_ranking(encoded: Encoded) -> Encoded:
    """What the first stage reads: the vectors without the fusion states."""
    return Encoded(encoded.pooled, encoded.tokens, encoded.token_mask)


def for_fusion(encoded: Encoded, rows: Tensor, device: torch.device) -> Encoded:
    """The given rows in float32 on the device, ready for `System.match`."""
    return encoded.select(rows).to(device).map(lambda x: x.float() if x.is_floating_point() else x)


def _keep(system: System, encoded: Encoded, total: int) -> Encoded:
    """On the CPU in float32; the states in half precision where those of all `total` rows would be large.

    A system that cannot match has no use for the states.
    """
    if not system.can("match"):
        return for_ranking(encoded).map(_full)
    size = sum(state.numel() * 4 for state in encoded.states.values()) // len(encoded) * total
    store = _half if size > STATES_IN_FULL else _full
    states = {name: store(state) for name, state in encoded.states.items()}
    return replace(encoded.map(_full), states=states)


def _full(x: Tensor) -> Tensor:
    return x.float().cpu() if x.is_floating_point() else x.cpu()


def _half(x: Tensor) -> Tensor:
    fits = x.is_floating_point() and bool(x.abs().amax() < HALF_LARGEST)
    return x.half().cpu() if fits else _full(x)
