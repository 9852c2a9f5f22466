"""Retrieval between pictures and texts: the first stage by vectors, and the best of it re-ranked by matching.

The protocol is section 6 of the zero-benchmark card, the re-ranking section 6 of the r2d2 card: each query's `top_k`
by the first stage are scored by the cross encoder, all others get the filler and never count as found.
Recalls are percent, kept exact (tables round them to 0.1).
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuwen.data.corpus import Caption, Corpus, Gallery, Relevance
from tuwen.errors import UserError, quoted
from tuwen.nn.encoded import Encoded
from tuwen.predictor import Predictor, for_ranking
from tuwen.progress import track
from tuwen.tasks import metrics
from tuwen.tasks.encoding import EncodedPictures, encode_captions, encode_pictures, galleries_of, measured, pictures_of
from tuwen.tasks.marks import Marks, tell_ranks
from tuwen.tasks.metrics import DIRECTIONS, MISSED
from tuwen.tasks.ranking import RetrievalConfig, retrieval_head
from tuwen.tasks.task import Task

FILLER = -100.0  # score of what was not re-ranked
TOP_K = 64
WATCHED = 1000  # pictures that a validation during training looks at
PROTOCOLS = ("merged", "published")  # equal texts are one, or stand apart


@dataclass(frozen=True)
class Side:
    """One direction of retrieval over encoded pictures [I] and texts [T]: scores of queries against all items.

    A system without a first stage (no vectors and no `scores` of its own) is matched on every pair.
    """

    predictor: Predictor
    images: Encoded
    texts: Encoded
    direction: str
    top_k: int
    batch_size: int
    budget: int
    rerank: bool = True
    shown: int = 0  # items a query that `ranks` keeps in `best`
    seconds: list[float] = field(default_factory=list)  # that the second stage took, block by block
    best: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # (items, scores) [Q, shown], block by block

    @property
    def stages(self) -> tuple[str, ...]:
        """ "first" where there are first-stage scores, "reranked" where the system can match and is asked to."""
        if not self.predictor.has_first(self.images):
            return ("reranked",)
        return ("first", "reranked") if self.rerank and self.predictor.system.matches() else ("first",)

    @property
    def by_image(self) -> bool:
        return self.direction == "image_to_text"

    @property
    def items(self) -> int:
        return len(self.texts if self.by_image else self.images)

    @property
    def depth(self) -> int:
        """How many items a query are re-ranked."""
        return min(self.top_k, self.items) if self.predictor.has_first(self.images) else self.items

    def first(self, start: int, stop: int) -> Tensor:
        """[stop - start, N] float32 first-stage scores of the queries; zero for a system without a first stage."""
        if "first" not in self.stages:
            return torch.zeros(stop - start, self.items)
        queries, items = map(for_ranking, (self.images, self.texts) if self.by_image else (self.texts, self.images))
        asked = queries.select(torch.arange(start, stop))
        step = max(1, self.budget // ((stop - start) * self.weight))
        parts = []
        for begin in range(0, self.items, step):
            block = items.select(torch.arange(begin, min(begin + step, self.items)))
            scores = self.predictor.first(*((asked, block) if self.by_image else (block, asked)))
            parts.append(scores.i2t if self.by_image else scores.t2i.T)
        return torch.cat(parts, dim=1)

    @property
    def weight(self) -> int:
        """Elements a score costs to compute: the token pairs of a token-wise score."""
        tokens = self.images.tokens, self.texts.tokens
        return 1 if tokens[0] is None or tokens[1] is None else tokens[0].shape[1] * tokens[1].shape[1]

    def reranked(self, first: Tensor, start: int) -> Tensor:
        """[Q, N] float32: final scores of each query's best `depth` by the first stage, FILLER (or less) elsewhere.

        first: [Q, N] first-stage scores of the queries that begin at `start`.
        """
        near = metrics.top(first, self.depth)
        return self.rescored(first, near, self.log_odds(near, start))

    def log_odds(self, near: Tensor, start: int) -> Tensor:
        """[Q, K, H] float32 of the queries that begin at `start`, each with K items near [Q, K]."""
        query, item = torch.arange(start, start + len(near))[:, None].expand_as(near).flatten(), near.flatten()
        image, text = (query, item) if self.by_image else (item, query)
        parts = [
            self.predictor.match(self.images.select(image[part]), self.texts.select(text[part])).cpu()
            for part in torch.arange(len(item)).split(self.batch_size)
        ]
        return torch.cat(parts).unflatten(0, near.shape)

    def rescored(self, first: Tensor, near: Tensor, log_odds: Tensor, weight: float | None = None) -> Tensor:
        """`reranked` from the log-odds [Q, K, H] of the items near [Q, K]; weight: in place of the predictor's."""
        predictor = self.predictor if weight is None else replace(self.predictor, weight=weight)
        final = predictor.rescored(log_odds.flatten(0, 1), first.gather(1, near).flatten(), self.direction)
        filler = min(FILLER, float(final.min()) - 1)  # below all, also where a log-odds falls under FILLER
        return torch.full_like(first, filler).scatter_(1, near, final.view(near.shape))

    def final(self, start: int, stop: int) -> Tensor:
        """[stop - start, N] scores of the queries by the last stage there is."""
        first = self.first(start, stop)
        return self.reranked(first, start) if self.reads_match else first

    @property
    def reads_match(self) -> bool:
        """Whether the last stage differs from the first."""
        return "reranked" in self.stages and self.predictor.reranks(self.images)

    def ranks(self, truth: Relevance) -> dict[str, np.ndarray]:
        """Rank of each query's best relevant item, [Q] int64, by stage ("first", "reranked").

        By the paper's own score a query whose relevant items were all shut out of re-ranking has rank MISSED, as
        published; by the fitted one what is not re-ranked follows in the order of the first stage.
        """
        out = {stage: np.empty(len(truth), dtype=np.int64) for stage in self.stages}
        blocks = list(metrics.blocks(len(truth), self.items * self.weight, self.budget))
        for start, stop in track(blocks, self.direction.replace("_", " "), len(blocks)):
            first = self.first(start, stop)
            pairs = metrics.pairs(truth, start, stop)
            ranked = metrics.block_ranks(first, *pairs)
            if "first" in out:
                out["first"][start:stop] = ranked
            final = first
            if "reranked" in out:
                began = time.monotonic()
                final = self.reranked(first, start) if self.reads_match else first
                out["reranked"][start:stop] = self.final_rank(final, pairs, ranked)
                self.seconds.append(time.monotonic() - began)
            if self.shown:
                items = metrics.top(final, self.shown)
                self.best.append((items, final.gather(1, items)))
        return out

    def top(self) -> tuple[Tensor, Tensor]:
        """(items, scores), [Q, shown] each, of the queries that `ranks` went through."""
        items, scores = zip(*self.best, strict=True)
        return torch.cat(items), torch.cat(scores)

    def final_rank(self, final: Tensor, pairs: tuple[Tensor, Tensor], first_rank: Tensor) -> Tensor:
        """[Q] int64 rank of each query's best relevant item by the final scores [Q, N]; pairs: the relevant ones."""
        if not self.reads_match:
            return first_rank
        rank = metrics.block_ranks(final, *pairs)
        return torch.where(rank >= self.depth, MISSED if self.predictor.weight is None else first_rank, rank)


@dataclass(frozen=True)
class Answer:
    """The best pictures for one text: corpus rows, scores, and whether each is right."""

    text: str
    language: str
    rows: list[int]
    scores: list[float]
    right: list[bool]


@dataclass(frozen=True)
class Asked:
    """The queries of one language, and what came out best: texts [T], corpus rows of the pictures [I], right pairs.

    best: direction -> (items [Q, N] int64 positions, scores [Q, N]) of each query's best by the last stage there is.
    """

    texts: list[Caption]
    rows: np.ndarray
    truth: Relevance
    best: dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Retrieval:
    """What an evaluation found.

    json: the object of `tuwen eval --task retrieval --json`.
    ranks: language -> stage -> direction -> [Q] int64, a rank a query (0 is best; NO_ANSWER, MISSED), for paired
        statistics between systems on the same corpus.
    answers: the best pictures for the texts asked for.
    asked: language -> its queries with the best items of each, where these were asked for.
    """

    json: dict
    ranks: dict[str, dict[str, dict[str, np.ndarray]]]
    answers: list[Answer] = field(default_factory=list)
    asked: dict[str, Asked] = field(default_factory=dict)


def evaluate_retrieval(predictor: Predictor, corpus: Corpus, **options) -> dict:
    """The JSON of `retrieve`, which takes the same arguments."""
    return retrieve(predictor, corpus, **options).json


def retrieve(
    predictor: Predictor,
    corpus: Corpus,
    *,
    top_k: int = TOP_K,
    batch_size: int = 64,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    directions: Sequence[str] = DIRECTIONS,
    rerank: bool = True,
    samples: int = 0,
    shown: int = 0,
    marks: Marks | None = None,
    budget: int = metrics.BUDGET,
    protocol: str = "merged",
) -> Retrieval:
    """Recall at 1, 5, 10 per language, by the first stage and re-ranked where the system can match.

    top_k: candidates a query that are re-ranked. batch_size: pictures, texts or pairs at once. languages: those
    measured (default: all of the corpus that the run knows). limit: at most so many pictures. directions:
    "image_to_text", "text_to_image"; mean recall is the mean of their recalls (three for MUGE, text to image alone).
    rerank: no spares the matching where there is a first stage. samples: texts a language whose best five pictures are
    kept. shown: best items of every query that are kept. marks: where queries' gains are told. budget: scores at once.
    protocol: "merged", or "published": equal texts stand apart, each right for its own row's picture alone.

    Raises:
        UserError: unknown language or direction, nothing to rank, unreadable pictures, a system that can neither
            score nor match.
    """
    began = time.monotonic()
    _check(top_k, directions, protocol)
    galleries, note = galleries_of(predictor, corpus, languages, limit, apart=protocol == "published")
    rows = list(dict.fromkeys(row for gallery in galleries.values() for row in gallery.rows))
    out: dict = {"protocol": protocol, "languages": {}}
    ranks, answers, asked, seconds, queries = {}, [], {}, 0.0, 0
    with predictor.evaluating():
        pictures = encode_pictures(predictor, corpus, rows, batch_size)
        for language, gallery in galleries.items():
            texts = encode_captions(predictor, gallery.texts, batch_size)
            images, truth, rows_shown = pictures_of(gallery, pictures)
            how = top_k, batch_size, budget, rerank, shown
            sides = {way: Side(predictor, images, texts, way, *how) for way in DIRECTIONS}
            truths = {"image_to_text": truth.transpose(), "text_to_image": truth}
            by_way = {way: sides[way].ranks(truths[way]) for way in directions}
            stages = sides[directions[0]].stages
            ranks[language] = {stage: {way: by_way[way][stage] for way in directions} for stage in stages}
            out["languages"][language] = _summary(ranks[language], truths, directions)
            tell_ranks(marks, language, ranks[language][stages[-1]], truth, corpus, rows_shown)
            seconds += sum(sum(sides[way].seconds) for way in directions)
            queries += sum(len(truths[way]) for way in directions)
            answers += _answers(sides["text_to_image"], gallery, truth, rows_shown, samples)
            if shown:
                asked[language] = Asked(gallery.texts, rows_shown, truth, {way: sides[way].top() for way in directions})
    out |= {"images": len(pictures.rows), "texts": sum(len(gallery.texts) for gallery in galleries.values())}
    out |= {"broken": dict(pictures.broken), "seconds": time.monotonic() - began}
    about = _described(out, predictor, corpus, pictures, top_k, note)
    if rerank and predictor.system.matches():
        about["second_stage"] = {**predictor.score_rule(), "ms_a_query": round(1000 * seconds / max(1, queries), 3)}
    return Retrieval(about, ranks, answers, asked)


def best_pictures(
    predictor: Predictor, corpus: Corpus, texts: Sequence[Caption], count: int = 10, batch: int = 64
) -> Iterator[tuple[Caption, list[int]]]:
    """Each text with the rows of its best pictures of the corpus, by the last stage there is, the likeliest first."""
    with predictor.evaluating():
        pictures = encode_pictures(predictor, corpus, corpus.gallery().rows, batch)
        encoded, way = encode_captions(predictor, texts, batch), "text_to_image"
        side = Side(predictor, pictures.encoded, encoded, way, TOP_K, batch, metrics.BUDGET)
        for start, stop in metrics.blocks(len(texts), side.items * side.weight, metrics.BUDGET):
            best = metrics.top(side.final(start, stop), count)
            yield from zip(texts[start:stop], pictures.rows[best.numpy()].tolist(), strict=True)


def _check(top_k: int, directions: Sequence[str], protocol: str) -> None:
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol must be one of {', '.join(PROTOCOLS)}, not {quoted(protocol, 80)}")
    if not directions or set(directions) - set(DIRECTIONS):
        raise UserError(f"directions must be among {', '.join(DIRECTIONS)}, not {directions!r}")
    if top_k < 1:
        raise UserError(f"top_k is {top_k}; give at least 1")


def _summary(ranks: dict[str, dict[str, np.ndarray]], truths: dict[str, Relevance], directions) -> dict:
    """Recalls of one language by stage, with the chance level and the number of queries asked and left out."""
    out: dict = {}
    for stage in ("first", "reranked"):
        if stage in ranks:
            out[stage] = {direction: metrics.recalls(ranks[stage][direction]) for direction in directions}
            out[stage]["mean_recall"] = metrics.mean_recall(out[stage])
    if len(ranks) == 2:
        out["gain"] = out["reranked"]["mean_recall"] - out["first"]["mean_recall"]  # of the second stage, in points
    out["chance"] = {direction: metrics.chance(truths[direction]) for direction in directions}
    out["chance"]["mean_recall"] = metrics.mean_recall(out["chance"])
    asked = {direction: int((np.diff(truths[direction].start) > 0).sum()) for direction in directions}
    out["queries"] = asked
    out["left_out"] = {direction: len(truths[direction]) - asked[direction] for direction in directions}
    return out


def _answers(side: Side, gallery: Gallery, truth: Relevance, rows: np.ndarray, samples: int) -> list[Answer]:
    """The best five pictures, by the last stage there is, for some texts spread over the gallery."""
    able, out = np.flatnonzero(np.diff(truth.start) > 0), []
    for text in able[np.linspace(0, len(able) - 1, min(samples, len(able))).round().astype(int)].tolist():
        scores = side.final(text, text + 1)
        best = metrics.top(scores, 5)[0]
        right = np.isin(best.numpy(), truth.images_of(text)).tolist()
        caption = gallery.texts[text]
        out.append(Answer(caption.text, caption.language, rows[best.numpy()].tolist(), scores[0, best].tolist(), right))
    return out


def _described(
    metrics: dict, predictor: Predictor, corpus: Corpus, pictures: EncodedPictures, top_k: int, note: str
) -> dict:
    """What was measured and how, before the figures."""
    about = {"system": predictor.name, "corpus": corpus.name, "split": corpus.split, "task": "retrieval", **metrics}
    ranks = predictor.has_first(pictures.encoded)
    notes = ["" if ranks else "no first stage: every picture was matched with every text", note]
    about |= {"note": "\n".join(filter(None, notes))} if any(notes) else {}
    return about | {"top_k": top_k} if ranks and predictor.system.matches() else about


class ImageTextRetrieval(Task):
    what, metric = "texts of a picture, pictures of a text", "recall at k"
    figure = "languages.*.reranked.mean_recall|languages.*.first.mean_recall"
    why, needs = "each pair has a score", ("encode_images encode_texts", "match")
    Config = RetrievalConfig

    def head(self, system, tokenizer):
        return retrieval_head(system, self.config)

    def validate(self, predictor, head, corpus):
        """Mean recall of the first stage, or of the match where there is none."""
        by_language = evaluate_retrieval(predictor, corpus, limit=WATCHED, rerank=False)["languages"].values()
        stages = [marks.get("first", marks.get("reranked")) for marks in by_language]
        return {"score": float(np.mean([stage["mean_recall"] for stage in stages]))}

    def measure(self, predictor, head, corpus, **options):
        return evaluate_retrieval(predictor, corpus, **options)

    def predictions(self, predictor, head, corpus, **beside) -> Iterator[dict[str, Any]]:
        """As MUGE's server takes them where the corpus has numbered queries; else each text with its pictures' ids."""
        texts = [Caption(text, language, number, -1, 0) for number, language, text in corpus.queries]
        texts = texts or [text for known in measured(predictor, corpus, None) for text in corpus.gallery(known).texts]
        for text, rows in best_pictures(predictor, corpus, texts):
            shown = [corpus.record(row) for row in rows]
            numbered = {"query_id": text.id, "item_ids": [record.columns.get("image_id") for record in shown]}
            named = {"query": text.text, "language": text.language, "images": [record.id for record in shown]}
            yield numbered if corpus.queries else named

    def table(self, measured):
        cuts = ("r1", "r5", "r10")
        head = ("language", "stage", *(f"{way} R@{cut[1:]}" for way in ("i2t", "t2i") for cut in cuts), "mean")
        rows = []
        for language, stages in measured["languages"].items():
            for stage in ("first", "reranked", "chance"):
                if stage in stages:
                    ways = [stages[stage].get(way, {}) for way in ("image_to_text", "text_to_image")]
                    recalls = [f"{way[cut]:.1f}" if cut in way else "-" for way in ways for cut in cuts]
                    rows.append((language, stage, *recalls, f"{stages[stage]['mean_recall']:.1f}"))
        apart = ", each right for its own picture alone" if measured["protocol"] == "published" else ""
        return f"{measured['images']} images, {measured['texts']} texts{apart}, recall in percent", head, rows
