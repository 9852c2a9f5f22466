"""What else the first stage's logit could be in the final score: saturated, or with hubs put down. Writes
benchmarks/results/first_logits.json.

    python benchmarks/first_logits.py --run r2d2=RUN albef=RUN     # finished runs with a second stage

`final = first_logit + w log-odds` is what `tuwen` ranks by (tuwen/similarity/final.py). Tried beside it, s being the
logits of a query over the gallery and B the pairs a step that the run was trained with:

- saturated: log(exp(s) + exp(max s) / B). Among B pairs a contrast never learns odds longer than B to one.
- hubs: s less half the mean of the ten best logits which an item has from queries of the training split (CSLS, Conneau
  et al. 2018; the query's own half is the same for all its items).
- inverted: s less log sum exp of the item's logits from those queries (Smith et al. 2017).

For each form: mean recall of the first stage alone, what the best weight adds on validation, the weight that is chosen
there as `tuwen` chooses it, and what that weight gives on test over the plain first stage, in points.
"""

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import tuwen
from tuwen.benchmark.weighing import spread_queries
from tuwen.config import read_yaml
from tuwen.data.corpus import Corpus
from tuwen.data.open import open_corpus
from tuwen.predictor import Predictor
from tuwen.similarity.final import WEIGHTS, chosen_weight, weight_name
from tuwen.tasks import metrics
from tuwen.tasks.encoding import encode_captions, encode_pictures, pictures_of
from tuwen.tasks.retrieval import Side

RESULT = Path(__file__).parent / "results" / "first_logits.json"
PICTURES = {"val": 400, "test": 300}
ASKED, BANK, NEAREST, TOP_K = 200, 400, 10, 16
Form = Callable[[Tensor, Tensor, int], Tensor]

# of logits [Q, N], the same items' logits from other queries [A, N], and the batch of the training
FORMS: dict[str, Form] = {
    "as it is": lambda first, bank, batch: first,
    "saturated": lambda first, bank, batch: torch.logaddexp(first, first.amax(1, keepdim=True) - math.log(batch)),
    "hubs": lambda first, bank, batch: first - bank.topk(NEAREST, 0).values.mean(0) / 2,
    "inverted": lambda first, bank, batch: first - bank.logsumexp(0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="+", metavar="NAME=RUN", required=True)
    parser.add_argument("--corpus", default="scenes:side=64,things=24,objects=3,whole=true")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name, _, run in (given.partition("=") for given in options.run):
        results[name] = {
            "command": " ".join(["python", *sys.argv]),
            "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            "versions": {package: version(package) for package in ("torch", "tuwen")},
            **compared(Path(run), options.corpus),
        }
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(name, json.dumps(results[name]["forms"]), flush=True)


def compared(run: Path, location: str) -> dict[str, Any]:
    """Every form on validation and test."""
    predictor = tuwen.load(run).predictor
    training = read_yaml(run / "config.yaml")["train"]
    batch = training["batch_size"]
    train = open_corpus(location, "train", "skip")
    answers = {split: answered(predictor, open_corpus(location, split, "skip"), train, batch) for split in PICTURES}
    forms = {}
    for form, (hits, share, group) in answers["val"].items():
        chosen = chosen_weight(hits, share, group)
        val, test = (mean_recalls(*answers[split][form][:2]) for split in PICTURES)
        plain = mean_recalls(*answers["test"]["as it is"][:2])[0]
        best = int(val[1:].argmax()) + 1
        forms[form] = {
            "first": {"val": round(float(val[0]), 1), "test": round(float(test[0]), 1)},
            "best on val": {"weight": weight_name(WEIGHTS[best]), "gain": round(float(val[best] - val[0]), 1)},
            "its gain on test": round(float(test[best] - test[0]), 1),
            "chosen": weight_name(WEIGHTS[chosen]),
            "over the plain first stage on test": round(float(test[chosen] - plain), 1),
        }
    return {"batch": batch, "steps": training["steps"], "forms": forms}


def mean_recalls(hits: Tensor, share: Tensor) -> Tensor:
    """[W] in percent."""
    return 100 * (hits * share).sum(1)


def answered(
    predictor: Predictor, corpus: Corpus, train: Corpus, batch: int
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """By form (hits [W, Q], share [Q], group [Q]): what `chosen_weight` reads, over languages and directions."""
    parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {form: [] for form in FORMS}
    with predictor.evaluating():
        for language in corpus.languages:
            gallery, others = corpus.gallery(language, PICTURES[corpus.split]), train.gallery(language, BANK)
            pictures, strangers = (
                encode_pictures(predictor, c, list(g.rows), 64) for c, g in ((corpus, gallery), (train, others))
            )
            texts, other_texts = (encode_captions(predictor, g.texts, 64) for g in (gallery, others))
            images, truth, own_rows = pictures_of(gallery, pictures)
            other_images = pictures_of(others, strangers)[0]
            text_rows = np.array([caption.row for caption in gallery.texts])
            for way in metrics.DIRECTIONS:
                by_image = way == "image_to_text"
                relevance = truth.transpose() if by_image else truth
                chosen = spread_queries(relevance, ASKED)
                queries = torch.from_numpy(chosen)
                ends = (images.select(queries), texts) if by_image else (images, texts.select(queries))
                side = Side(predictor, *ends, way, TOP_K, 64, metrics.BUDGET)
                asking = (other_images, texts) if by_image else (images, other_texts)
                bank_side = Side(predictor, *asking, way, TOP_K, 64, metrics.BUDGET)
                bank = bank_side.first(0, len(other_images if by_image else other_texts))
                right = torch.zeros(len(chosen), side.items, dtype=torch.bool)
                for row, query in enumerate(chosen.tolist()):
                    right[row, torch.from_numpy(np.array(relevance.images_of(query)))] = True
                share = torch.full((len(chosen),), 1 / (len(corpus.languages) * 2 * len(chosen)), dtype=torch.float64)
                group = torch.from_numpy((own_rows if by_image else text_rows)[chosen].astype(np.int64))
                for form, hits in hits_of(side, bank, right, batch).items():
                    parts[form].append((hits, share, group))
    return {
        form: (torch.cat([p[0] for p in of], 1), torch.cat([p[1] for p in of]), torch.cat([p[2] for p in of]))
        for form, of in parts.items()
    }


def hits_of(side: Side, bank: Tensor, right: Tensor, batch: int) -> dict[str, Tensor]:
    """By form [W, Q]: the mean over the cutoffs of whether a query is answered, by weight."""
    first, pairs = side.first(0, len(right)), right.nonzero().unbind(1)
    out = {}
    for form, of in FORMS.items():
        logit = of(first, bank, batch)
        near = metrics.top(logit, side.depth)
        odds = side.log_odds(near, 0)
        ranks = [metrics.block_ranks(logit, *pairs)]
        for weight in WEIGHTS[1:]:
            rank = metrics.block_ranks(side.rescored(logit, near, odds, weight), *pairs)
            ranks.append(torch.where(rank >= side.depth, ranks[0], rank))
        out[form] = torch.stack([torch.stack([r < k for k in metrics.CUTOFFS]).double().mean(0) for r in ranks])
    return out


if __name__ == "__main__":
    main()
