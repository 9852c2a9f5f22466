"""Instance-level retrieval: the products a picture and title show, among items that show one each (Product1M, CAPTURE).

The corpus is that of the queries; items are its split "gallery" (or "iconic"), or else the queries themselves, of which
those count that show one product. Which that is says the column "products" (names, of queries several), else "cls",
else "tags". Asked is by picture, by title, or by both, against the same of the items. Both against both compares like
with like, as the paper's [v; t]; one side against both sums its cosines with each. A query is never an answer to itself
(the same row, or of the same "item"). Beside the system stand chance and the pictures' colours.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tuwen.data.corpus import Corpus, Record, languages_and_texts
from tuwen.errors import UserError
from tuwen.predictor import FIRST, Predictor, vectors
from tuwen.tasks import metrics
from tuwen.tasks.encoding import looked_at
from tuwen.tasks.instances import average_precisions, instance_marks
from tuwen.tasks.marks import Marks
from tuwen.tasks.task import Task

SIDES = ("picture", "title", "both")
TAKEN, WRITTEN = 110, 100  # of a ranking, before and after the query itself is taken out


@dataclass(frozen=True)
class Items:
    """Rows of a split by picture, title and colours, [R, D] of unit length.

    names: in files. keys: equal for one item of two splits. products: that each shows.
    """

    sides: Mapping[str, Tensor]
    names: list[str]
    keys: list[tuple[str, str]]
    products: list[list[str]]
    broken: Mapping[str, int]

    def of(self, places: list[int]) -> "Items":
        """Some of them."""
        sides = {side: vectors[places] for side, vectors in self.sides.items()}
        names, keys, products = ([column[k] for k in places] for column in (self.names, self.keys, self.products))
        return Items(sides, names, keys, products, self.broken)  # type: ignore[arg-type]


def evaluate_instance_retrieval(
    predictor: Predictor,
    corpus: Corpus,
    *,
    gallery: Corpus | None = None,
    iconic: Corpus | None = None,
    batch_size: int = 64,
    limit: int | None = None,
    languages: Sequence[str] | None = None,
    marks: Marks | None = None,
) -> dict[str, Any]:
    """Percent: `{"by": {"picture-picture": {"map10", "mar10", "prec10", ...}, ...}, "colours", "chance", ...}`.

    limit: at most so many queries. languages: of titles, the first that a row has; all where None. marks: told what
    each query adds to the mean average precision at 10, by what it is asked with and against.

    Raises:
        UserError: rows name no products, or no item shows one that is asked for.
    """
    began = time.monotonic()
    ranked = ranked_items(predictor, corpus, gallery or iconic, batch_size, limit, languages)
    queries, items, rankings = ranked
    names = [products[0] for products in items.products]
    missing = sum(any(name not in names for name in products) for products in queries.products)
    if missing == len(queries.names):
        raise UserError(f"corpus {corpus.name}, split {corpus.split}: no item shows a product that is asked for")
    by = {how: instance_marks(ranking, queries.products, names) for how, ranking in rankings.items()}
    if marks is not None:
        for how in by.keys() - {"colours"}:
            earned = average_precisions(rankings[how], queries.products, names, 10)
            marks.add(how, earned, np.arange(len(earned)))
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randperm(len(names), generator=generator).tolist()[:TAKEN] for _ in queries.names]
    broken = Counter(queries.broken) + Counter(items.broken if gallery or iconic else {})
    return {
        "system": predictor.name,
        "corpus": corpus.name,
        "split": corpus.split,
        "task": "instance_retrieval",
        "colours": by.pop("colours"),
        "by": by,
        "chance": instance_marks(drawn, queries.products, names),
        "queries": len(queries.names),
        "items": len(names),
        "without_items": missing,
        "broken": dict(broken),
        "seconds": time.monotonic() - began,
    }


def ranked_items(
    predictor: Predictor,
    corpus: Corpus,
    gallery: Corpus | None,
    batch_size: int = 64,
    limit: int | None = None,
    languages: Sequence[str] | None = None,
) -> tuple[Items, Items, dict[str, list[list[int]]]]:
    """(queries, items, rankings by "QUERY-ITEM" and "colours": positions of the items, best first, of every query)."""
    with predictor.evaluating():
        queries = _items(predictor, corpus, batch_size, None if gallery is None else limit, languages)
        items = queries if gallery is None else _items(predictor, gallery, batch_size, None, languages)
    queries = queries.of(list(range(len(queries.names)))[:limit])
    items = items.of([k for k, products in enumerate(items.products) if len(set(products)) == 1])
    place = {key: k for k, key in enumerate(items.keys)}
    own = np.array([place.get(key, -1) for key in queries.keys])
    rankings = {}
    for asked, against in [("colours", "colours"), *((a, b) for a in SIDES for b in SIDES)]:
        if (scores := _scores(queries.sides, items.sides, asked, against)) is not None:
            name = "colours" if asked == "colours" else f"{asked}-{against}"
            rankings[name] = list(_rankings(scores, own))
    return queries, items, rankings


def _rankings(scores: Tensor, own: np.ndarray) -> Iterator[list[int]]:
    for best, itself in zip(metrics.top(scores, TAKEN).tolist(), own.tolist(), strict=True):
        yield [item for item in best if item != itself][:WRITTEN]


def _scores(queries: Mapping[str, Tensor], items: Mapping[str, Tensor], asked: str, against: str) -> Tensor | None:
    """[Q, N]; None where one of the two has no such side."""
    pairs = [(a, b) for a in _parts(asked) for b in _parts(against)]
    pairs = [(a, a) for a in _parts(asked)] if asked == against else pairs
    if any(a not in queries or b not in items for a, b in pairs):
        return None
    return torch.stack([(queries[a].double() @ items[b].double().T).float() for a, b in pairs]).sum(0)


def _parts(side: str) -> tuple[str, ...]:
    return ("picture", "title") if side == "both" else (side,)


def _items(
    predictor: Predictor, corpus: Corpus, batch_size: int, limit: int | None, languages: Sequence[str] | None
) -> Items:
    """The rows of a corpus that name products, each with what can be read of it.

    Raises:
        UserError: none names a product; a system without vectors.
    """
    products = {row: products_of(corpus.record(row)) for row in range(len(corpus))}
    rows = [row for row, names in products.items() if names][:limit]
    if not rows:
        raise UserError(
            f'corpus {corpus.name}, split {corpus.split}: its rows name no products; add a column "products", names of '
            'what each shows, or "cls"'
        )

    def vector_of(images) -> Tensor:
        vector = vectors(predictor.encode(images))
        if vector is None:
            raise predictor.system.lacks("instance_retrieval", "it has no vectors of pictures")
        return vector

    seen = looked_at(predictor, corpus, rows, batch_size, vector_of)
    shown = seen.rows.tolist()
    colours = seen.thumbnails - seen.thumbnails.mean(1, keepdim=True)
    sides = {"picture": F.normalize(seen.features, dim=1), "colours": F.normalize(colours, dim=1)}
    titles = [_title(corpus.record(row), languages or predictor.languages) for row in shown]
    if all(title is not None for title in titles):
        texts, spoken = zip(*(title for title in titles if title is not None), strict=True)
        vector = vectors(predictor.texts(texts, spoken, batch_size, FIRST))
        sides |= {} if vector is None else {"title": F.normalize(vector, dim=1)}
    keys = [_key(corpus.record(row), corpus.split) for row in shown]
    return Items(sides, [name for _, name in keys], keys, [products[row] for row in shown], seen.broken)


def _key(record: Record, split: str) -> tuple[str, str]:
    """(where the name counts, name): an item's number in all splits, a row's id in its own."""
    item = record.columns.get("item")
    return (split, record.id) if item is None else ("", str(item))


def products_of(record: Record) -> list[str]:
    """What a row shows, one perhaps twice: its column "products", its class, or the names in its "tags"."""
    columns = record.columns
    named = next((columns[name] for name in ("products", "cls", "tags") if columns.get(name) is not None), ())
    if isinstance(named, Mapping):  # names by language
        named = next(iter(named.values()), ())
    return [str(name) for name in named] if isinstance(named, list | tuple) else [str(named)]


def _title(record: Record, languages: Sequence[str]) -> tuple[str, str] | None:
    """(text, language) of the first text in one of the languages."""
    return next(((text, language) for language, text in languages_and_texts(record) if language in languages), None)


class InstanceRetrieval(Task):
    what, metric = "the products a picture shows, among pictures of one each", "mAP, mAR, precision at k"
    figure = "by.*.map10"
    why, needs = "pictures and titles have a vector each", ("encode_images encode_texts vectors",)
    beside = ("gallery", "iconic")

    def measure(self, predictor, head, corpus, **options):
        return evaluate_instance_retrieval(predictor, corpus, **options)

    def predictions(self, predictor, head, corpus, **beside: Corpus) -> Iterator[dict[str, Any]]:
        """Lines of the official file: a query, then its hundred best items; by both sides where there are titles."""
        queries, items, rankings = ranked_items(predictor, corpus, beside.get("gallery") or beside.get("iconic"))
        best = rankings.get("both-both") or rankings["picture-picture"]
        for name, ranking in zip(queries.names, best, strict=True):
            yield {"query_id": name, **{f"ret_{k}": items.names[item] for k, item in enumerate(ranking, 1)}}

    def table(self, measured):
        cells = ("map1", "map10", "mar10", "prec10", "map100", "mar100", "prec100")
        marks = {**{how.replace("-", " to "): by for how, by in measured["by"].items()}}
        marks |= {"colours alone": measured["colours"], "chance": measured["chance"]}
        rows = [(how, *(f"{by[cell]:.1f}" for cell in cells)) for how, by in marks.items()]
        lacking = measured["without_items"]
        without = f", {lacking} of them ask for what no item shows" if lacking else ""
        remark = f"{measured['queries']} queries{without}, {measured['items']} items; percent"
        heads = ("by", "R@1", "mAP@10", "mAR@10", "Prec@10", "mAP@100", "mAR@100", "Prec@100")
        return remark, heads, rows
