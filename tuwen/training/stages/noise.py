"""How likely each text is wrong for its picture, by the loss of a run that has not yet learnt them by heart.

NLIP (Huang et al. 2022, card section 4.1): right pairs reach a low contrastive loss earlier than wrong ones. Every
pair's loss is taken once, on the whole picture, among as many others as any other pair's, at the run's own temperature;
a mixture of two normals is fitted to the losses of each language, and a pair's noise is how likely its loss is of the
higher one. Where the two lie too close, there is no telling, and no pair of that language counts as noisy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from tuwen.data import draws
from tuwen.data.batch import same_pair
from tuwen.data.beside import NOISE
from tuwen.data.corpus import languages_and_texts, text_id
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.predictor import FIRST
from tuwen.training.stages.mixture import two_normals
from tuwen.training.stages.work import StageWork, keyed, picture_vectors

LOSS = "loss"
PART = 32  # batches
FEW = 100  # fewer texts of a language are fitted together with the others


@dataclass(frozen=True)
class NoiseConfig:
    """batch: pairs that each pair's loss is taken among; the same for all, so that it is no batch that is noisy.
    gate: least distance of the two means, in pooled standard deviations, below which nothing counts as noisy."""

    batch: int = 512
    gate: float = 2.0

    def __post_init__(self):
        if not (2 <= self.batch <= 2**16 and 0 <= self.gate < 100):
            raise ValueError(f"batch {self.batch} or gate {self.gate}: out of range")


@dataclass(frozen=True)
class _Pair:
    row: int
    language: str
    text: str


def estimate_noise(work: StageWork) -> pa.Table:
    """The table (row id, text id) -> noise in 0..1 and the loss it comes from; pictures that cannot be read have 1.

    Raises:
        UserError: a corpus with fewer than two pairs, or a run without one vector a picture and a text.
    """
    corpus, pairs = work.corpus, _pairs_of(work)
    if len(pairs) < 2:
        raise UserError(f"{corpus.name}, {corpus.split}: {len(pairs)} pairs; no loss can be taken among so few")
    vectors = picture_vectors(work)
    size = min(work.config.batch, len(pairs))
    order = draws.generator(work.seed, "pairs").permutation(len(pairs))

    def make(places: range) -> pa.Table:
        losses = [_losses(work, [pairs[k] for k in batch], vectors) for batch in _batches(order, places, size)]
        return pa.table({LOSS: np.concatenate(losses)[: len(places)]})

    with work.asked.evaluating():
        drawn = work.in_parts("losses", len(pairs), PART * size, make)[LOSS].to_numpy()
    losses = np.empty(len(pairs), dtype=np.float64)
    losses[order] = drawn
    noise = noise_of_losses(work, losses, [pair.language for pair in pairs])
    ids = [corpus.record(pair.row).id for pair in pairs]
    return keyed(
        ids, [text_id(pair.text) for pair in pairs], **{NOISE: pa.array(noise, pa.float32()), LOSS: pa.array(losses)}
    )


def noise_of_losses(work: StageWork, losses: np.ndarray, languages: Sequence[str]) -> np.ndarray:
    """[N] noise of losses [N], fitted by language; infinite losses, of pictures that cannot be read, have 1."""
    spoken, noise = np.array(languages), np.ones(len(losses))
    names = dict.fromkeys(languages)
    few = [name for name in names if (spoken == name).sum() < FEW]
    groups = [[name] for name in names if name not in few] + ([few] if few else [])
    for group in groups:
        chosen = np.isin(spoken, group) & np.isfinite(losses)
        mixture, what = two_normals(losses[chosen]), ", ".join(group)
        if mixture is None or mixture.separation <= work.config.gate:
            apart = "they are all alike" if mixture is None else f"the two means lie {mixture.separation:.2f} apart"
            work.say(f"noise, {what}: {apart}, less than {work.config.gate:g} deviations; none counts as noisy")
            noise[chosen] = 0
            continue
        noise[chosen] = mixture.higher(losses[chosen])
        work.say(
            f"noise, {what}: {100 * mixture.weight[1]:.1f}% of {chosen.sum():,} texts look wrong (losses "
            f"{mixture.mean[0]:.2f} and {mixture.mean[1]:.2f}, {mixture.separation:.1f} deviations apart)"
        )
    return noise


def _pairs_of(work: StageWork) -> list[_Pair]:
    """Every text of every row once, in the languages that the run knows."""
    pairs = []
    for row in range(len(work.corpus)):
        record = work.corpus.record(row)
        once = {(text_id(text)): (language, text) for language, text in languages_and_texts(record) if text.strip()}
        pairs += [_Pair(row, language, text) for language, text in once.values()]
    return pairs


def _batches(order: np.ndarray, places: range, size: int) -> list[np.ndarray]:
    """Whole batches over the places of an order; the last takes what it lacks from the order's beginning."""
    starts = range(places.start, places.stop, size)
    return [np.take(order, range(start, start + size), mode="wrap") for start in starts]


def _losses(work: StageWork, pairs: Sequence[_Pair], vectors: np.ndarray) -> np.ndarray:
    """[B] float64, infinite for pictures that cannot be read."""
    predictor, corpus = work.asked, work.corpus
    texts = predictor.texts([p.text for p in pairs], [p.language for p in pairs], fields=FIRST).pooled
    images = torch.from_numpy(vectors[[p.row for p in pairs]])
    if texts is None:
        raise predictor.system.lacks("be asked for noise", "it has no vector of a text to compare with a picture's")
    readable = images.isfinite().all(1)
    first = predictor.first(Encoded(images.nan_to_num()), Encoded(texts))
    logits = (
        predictor.system.first_logit(first.i2t, "image_to_text"),
        predictor.system.first_logit(first.t2i, "text_to_image").T,
    )
    ids = torch.tensor([[corpus.record(p.row).image_id, text_id(p.text)] for p in pairs])
    same = same_pair(ids[:, 0], ids[:, 1], ids[:, 0], ids[:, 1])
    losses = pair_losses(logits[0].double(), logits[1].double(), same, readable)
    return losses.masked_fill(~readable, torch.inf).numpy()


def pair_losses(image_logits: Tensor, text_logits: Tensor, same: Tensor, real: Tensor) -> Tensor:
    """[B] half the sum of a pair's both cross entropies; others of its picture or text are no wrong partners.

    image_logits [B, B] of pictures with texts, text_logits [B, B] of texts with pictures. same: [B, B] bool; real: [B]
    bool, False on rows that are nobody's partner.
    """
    own = torch.eye(len(same), dtype=torch.bool, device=same.device)
    barred = (same | ~real) & ~own
    sides = [x.masked_fill(barred, -torch.inf) for x in (image_logits, text_logits)]
    return (sides[0].logsumexp(1) + sides[1].logsumexp(1) - sides[0].diagonal() - sides[1].diagonal()) / 2
