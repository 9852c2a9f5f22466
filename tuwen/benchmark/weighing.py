"""The weight of the match in a run's final score, settled on a validation split.

Every query's best candidates are matched once; their final scores under each of `WEIGHTS` are sums of what is at hand
(`tuwen.similarity.final`).
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tuwen.data.corpus import Corpus, Relevance
from tuwen.predictor import Predictor
from tuwen.similarity.final import QUERIES, WEIGHTS, chosen_weight, weight_name
from tuwen.tasks import metrics
from tuwen.tasks.encoding import encode_captions, encode_pictures, galleries_of, pictures_of
from tuwen.tasks.metrics import DIRECTIONS
from tuwen.tasks.retrieval import TOP_K, Side

PICTURES = 1000  # most of the gallery
ASKED = 200  # most queries of a language and direction


@dataclass(frozen=True)
class Weighed:
    """weight: of the match, inf for the match alone. why: in a line. queries: asked in all.

    recalls: mean recall in percent under each weight tried, averaged over languages; empty where none was tried.
    ms: of matching, a query.
    """

    weight: float
    why: str
    queries: int = 0
    recalls: dict[float, float] | None = None
    ms: float | None = None

    def to_json(self) -> dict:
        recalls = {weight_name(weight): recall for weight, recall in (self.recalls or {}).items()}
        return {"weight": weight_name(self.weight), "why": self.why, "queries": self.queries} | (
            {"mean_recall": recalls, "ms_a_query": self.ms} if recalls else {}
        )


def weigh(
    predictor: Predictor,
    corpus: Corpus,
    *,
    top_k: int = TOP_K,
    batch_size: int = 64,
    languages: Sequence[str] | None = None,
    limit: int = PICTURES,
    asked: int = ASKED,
) -> Weighed:
    """The weight that serves mean recall best on a corpus's split, where it beats the first stage by more than chance.

    top_k: candidates a query that are matched. languages: those measured (default: all of the corpus that the run
    knows). limit: most pictures of the gallery. asked: most queries of each language and direction, spread over it.

    Raises:
        UserError: as `retrieve`.
    """
    if not predictor.system.matches():
        return Weighed(0.0, "it has no cross encoder")
    galleries, _ = galleries_of(predictor, corpus, languages, limit)
    rows = list(dict.fromkeys(row for gallery in galleries.values() for row in gallery.rows))
    hits, shares, groups, seconds = [], [], [], 0.0
    with predictor.evaluating():
        pictures = encode_pictures(predictor, corpus, rows, batch_size)
        if not predictor.has_first(pictures.encoded):
            return Weighed(math.inf, "it has no first stage")
        for gallery in galleries.values():
            texts = encode_captions(predictor, gallery.texts, batch_size)
            images, truth, own_rows = pictures_of(gallery, pictures)
            text_rows = np.array([caption.row for caption in gallery.texts])
            for way in DIRECTIONS:
                by_image = way == "image_to_text"
                relevance = truth.transpose() if by_image else truth
                chosen = spread_queries(relevance, asked)
                queries = torch.from_numpy(chosen)
                ends = (images.select(queries), texts) if by_image else (images, texts.select(queries))
                side = Side(predictor, *ends, way, top_k, batch_size, metrics.BUDGET)
                began = time.monotonic()
                hits.append(_hits(side, _of_queries(relevance, chosen)))
                seconds += time.monotonic() - began
                share = 1 / (len(galleries) * len(DIRECTIONS) * max(1, len(chosen)))
                shares.append(torch.full((len(chosen),), share, dtype=torch.float64))
                groups.append(torch.from_numpy((own_rows if by_image else text_rows)[chosen].astype(np.int64)))
    return _settled(torch.cat(hits, 1), torch.cat(shares), torch.cat(groups), seconds)


def _settled(hits: Tensor, share: Tensor, group: Tensor, seconds: float) -> Weighed:
    queries = len(share)
    if queries < QUERIES:
        return Weighed(0.0, f"{queries} validation queries; fewer than {QUERIES} say nothing", queries)
    recalls = (100 * (hits.double() * share).sum(1)).tolist()
    best = chosen_weight(hits, share, group)
    gain = recalls[best] - recalls[0]
    why = f"{gain:+.1f} points on {queries} validation queries"
    if not best:
        most = max(recalls[1:]) - recalls[0]
        why = (
            f"no weight beats the first stage by more than chance on {queries} validation queries ({most:+.1f} points)"
        )
    return Weighed(
        WEIGHTS[best], why, queries, dict(zip(WEIGHTS, recalls, strict=True)), 1000 * seconds / max(1, queries)
    )


def _hits(side: Side, truth: Relevance) -> Tensor:
    """[W, Q] what each query adds to recall, the mean over the cutoffs of whether it is answered, by weight."""
    parts = []
    for start, stop in metrics.blocks(len(truth), side.items * side.weight, side.budget):
        first, pairs = side.first(start, stop), metrics.pairs(truth, start, stop)
        near = metrics.top(first, side.depth)
        log_odds, ranks = side.log_odds(near, start), [metrics.block_ranks(first, *pairs)]
        for weight in WEIGHTS[1:]:
            rank = metrics.block_ranks(side.rescored(first, near, log_odds, weight), *pairs)
            ranks.append(torch.where(rank >= side.depth, ranks[0], rank))
        parts.append(torch.stack([torch.stack([r < k for k in metrics.CUTOFFS]).double().mean(0) for r in ranks]))
    return torch.cat(parts, 1)


def spread_queries(truth: Relevance, count: int) -> np.ndarray:
    """At most so many of the queries that have an answer, spread evenly over them, rising."""
    answerable = np.flatnonzero(np.diff(truth.start) > 0)
    return answerable[np.linspace(0, len(answerable) - 1, min(count, len(answerable))).round().astype(int)]


def _of_queries(truth: Relevance, queries: np.ndarray) -> Relevance:
    return Relevance.of(truth.image_count, [truth.images_of(int(query)).tolist() for query in queries])
