"""Prefixes of vectors as vectors of their own: by hand, against the definition, in every system with a contrast."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from tests.systems.common import PROGRESS, build, example, shaken, units
from tests.systems.test_cookie import twofold
from tests.systems.test_ernie_unix2 import ONLY, bilingual
from tests.systems.test_max_vl import reported
from tests.systems.test_mvptr import PLACES, ROWS, phrased
from tests.systems.test_nlip import told
from tests.systems.test_simla import pictured
from tests.systems.test_unchanged import batch_of
from tuwen import systems, tasks
from tuwen.data.batch import Images, Spans
from tuwen.errors import UserError
from tuwen.objectives import contrastive as contrastive_room
from tuwen.objectives import gather as gather_room
from tuwen.objectives.contrastive import contrastive, distilled_contrastive, prefix
from tuwen.objectives.gather import global_contrast
from tuwen.systems import flava as flava_room
from tuwen.systems import grit_vlp as grit_room
from tuwen.systems import wukong as wukong_room

BATCHES = dict.fromkeys(("clip", "albef", "blip", "bridgetower", "r2d2", "prd2", "tokenflow", "wukong"), example)
BATCHES |= {"slan": lambda: batch_of([0, 1, 2, 3]), "bagformer": lambda: batch_of([0, 1, 2, 3]), "cookie": twofold}
BATCHES |= {"flava": lambda: coded(example()), "mvptr": phrased, "ernie_unix2": bilingual}
BATCHES |= {"grit_vlp": example, "vlmae": example, "simla": pictured, "max_vl": reported, "dide": example}
BATCHES |= {"nlip": told}
SETTINGS = {  # beside size tiny
    "tokenflow": {"whole": 0.5},
    "wukong": {"style": "clip", "embed": 16},
    "mvptr": {"places": PLACES, "phrases": 3, "rows": ROWS, "mask_share": 0.3},
    "vlmae": {"distil": True, "queue": 8},
    "simla": {"queue": 8},
    "max_vl": {"queue": 8},
    "ernie_unix2": {"languages": 3, "streams": ONLY["pairs"]},
}
TERMS = {"cookie": ["across"], "ernie_unix2": ["image_text_contrast"], "grit_vlp": ["contrast", "consistency"]}
SHARE = {"tokenflow": 0.5, "max_vl": 0.4}  # of the contrast of whole vectors in the loss


def coded(batch):
    """With the second view that FLAVA's codes are of, and no phrases."""
    images = Images(batch.images.pixels, views={"codes": batch.images.pixels})
    words = Spans(*(torch.zeros(0, dtype=torch.int64),) * 5)
    return dataclasses.replace(batch, images=images, texts=dataclasses.replace(batch.texts, spans=words))


def test_a_prefix_by_hand():
    assert torch.allclose(prefix(torch.tensor([[3.0, 4.0, 12.0]]) / 13, 2), torch.tensor([[0.6, 0.8]]))
    for width in (0, 3, 4):
        with pytest.raises(UserError, match="no width within vectors of 3"):
            prefix(torch.ones(1, 3), width)


def test_the_loss_is_the_mean_over_the_whole_and_its_prefixes():
    rows, columns, same = units(5, 8, 1), units(5, 8, 2), torch.eye(5, dtype=torch.bool)
    parts = [contrastive(rows, columns, rows, columns, same, 0.1)]
    for width in (2, 4):
        a, b = (F.normalize(x[:, :width], dim=1) for x in (rows, columns))
        parts.append(contrastive(a, b, a, b, same, 0.1))
    assert torch.allclose(global_contrast(rows, columns, same, 0.1, (2, 4)), sum(parts) / 3)
    assert torch.equal(global_contrast(rows, columns, same, 0.1), parts[0])


def test_the_distilled_loss_too():
    vectors = [units(4, 6, seed) for seed in range(6)]
    same, alpha, temperature = torch.eye(4, dtype=torch.bool), 0.3, torch.tensor(0.2)

    def loss(x, **options):
        return distilled_contrastive((x[0], x[1]), (x[2], x[3]), (x[4], x[5]), same, temperature, alpha, **options)

    short = loss([F.normalize(x[:, :3], dim=1) for x in vectors])
    assert torch.allclose(loss(vectors, nested=(3,)), (loss(vectors) + short) / 2)


def test_every_system_with_a_contrast_is_here():
    """But ARL's, which no contrast teaches, EGE-CMP's, which has no nested vectors, and those without vectors."""
    ranking = {name for name in systems.names() if "retrieval" in tasks.of_system(systems.find(name))}
    assert set(BATCHES) == {name for name in ranking if systems.find(name).vectors} - {"arl", "ege_cmp"}


def slow_contrast(images, texts, same, temperature, widths):
    """InfoNCE both ways of every width's prefix, a number at a time."""
    losses = []
    for width in widths:
        units = []
        for rows in (images, texts):
            lengths = [sum(x * x for x in row[:width]) ** 0.5 for row in rows]
            units.append([[x / n for x in row[:width]] for row, n in zip(rows, lengths, strict=True)])
        total = 0.0
        for queries, keys, right in (
            (*units, same),
            (*units[::-1], [list(column) for column in zip(*same, strict=True)]),
        ):
            for query, own in zip(queries, right, strict=True):
                logits = [sum(a * b for a, b in zip(query, key, strict=True)) / temperature for key in keys]
                normal = math.log(sum(math.exp(x) for x in logits))
                total -= sum(x - normal for x, fits in zip(logits, own, strict=True) if fits) / sum(own)
        losses.append(total / (2 * len(images)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("nested", [(), (1,), (2, 5, 7)])
def test_the_loss_is_the_slow_one_s(nested):
    """Pairs of which some are of one picture or one text."""
    images, texts, named = units(6, 8, 1), units(6, 8, 2), list(zip("abacde", "uvwvxy", strict=True))
    same = torch.tensor([[a == b or c == d for b, d in named] for a, c in named])
    slow = slow_contrast(images.tolist(), texts.tolist(), same.tolist(), 0.1, [8, *nested])
    assert float(global_contrast(images, texts, same, 0.1, nested)) == pytest.approx(slow, rel=1e-9)


def mid_run(name, nested):
    return shaken(build(name, nested=nested, **SETTINGS.get(name, {})))


@pytest.mark.parametrize("name", BATCHES)
def test_every_system_takes_the_mean_over_prefixes_of_the_vectors_it_is_searched_by(name, monkeypatch):
    """What is contrasted are unit vectors of the shared width; the mean is the one by hand, a width at a time."""
    calls, plain = [], contrastive_room.nested_mean

    def watched(loss, vectors, nested):
        assert nested == (2, 5)
        assert all(x.shape[1] == system.config.embed for x in vectors)
        by_hand = [loss(*vectors)]
        for width in nested:
            by_hand.append(loss(*(x[:, :width] / x[:, :width].square().sum(1, keepdim=True).sqrt() for x in vectors)))
        calls.append((plain(loss, vectors, nested), sum(by_hand) / 3))
        return calls[-1][0]

    system = mid_run(name, (2, 5))
    for room in (contrastive_room, gather_room, flava_room, wukong_room, grit_room):
        monkeypatch.setattr(room, "nested_mean", watched)
    terms = system(BATCHES[name](), PROGRESS).terms
    for result, by_hand in calls:
        torch.testing.assert_close(result, by_hand, rtol=1e-9, atol=0)
    results = [float(result.detach()) for result, _ in calls]
    mean = results[0] if name == "grit_vlp" else sum(results) / len(results)  # its second is of another term
    (term, *_) = TERMS.get(name, ["contrast"])
    assert float(terms[term].detach()) == pytest.approx(SHARE.get(name, 1) * mean)


@pytest.mark.parametrize("name", BATCHES)
def test_the_first_numbers_of_every_system_learn(name):
    """With `model.nested` the contrast changes and nothing else does."""
    losses = {nested: mid_run(name, nested)(BATCHES[name](), PROGRESS).terms for nested in ((), (2,))}
    changed = [term for term in losses[()] if not torch.equal(losses[()][term], losses[(2,)][term])]
    assert changed == TERMS.get(name, ["contrast"])


def test_widths_that_nothing_would_learn_are_refused():
    for name, options, message in (
        ("wukong", {}, 'nested needs style "clip"'),
        ("tokenflow", {}, "whole above 0"),
        ("bridgetower", {"contrast": False}, "which is off"),
    ):
        with pytest.raises(ValueError, match=message):
            build(name, nested=(2,), **options)
