"""The weight of the match: settled on a split, obeyed by every score, never worse than the first stage."""

import math

import pytest
import torch

from tests.tasks.stub import DualStub, FusionStub, MatchOnly, Pairs, Table, ready
from tests.tasks.test_retrieval import corpus
from tuwen.benchmark.weighing import spread_queries, weigh
from tuwen.predictor import Predictor
from tuwen.similarity.final import WEIGHTS, weight_name, weight_named
from tuwen.tasks.metrics import MISSED
from tuwen.tasks.retrieval import retrieve

WAYS = ("image_to_text", "text_to_image")


class Cooled(FusionStub):
    """First-stage scores are logits times 0.1."""

    temperature = torch.tensor(0.1)


def known(seed=0, pictures=60, first=2.0, odds=2.0, heads=1):
    """Scores over temperature, and log-odds, that each know the right pairs to so many deviations of their noise."""
    generator = torch.Generator().manual_seed(seed)
    right = torch.eye(pictures)
    logits = torch.randn(pictures, pictures, generator=generator) + first * right
    match = torch.randn(pictures, pictures, heads, generator=generator) + odds * right[..., None]
    return Table(0.1 * logits, match)


def model(table, weight=None, kind=Cooled) -> Predictor:
    plain = ready(kind(table), ("zh",))
    return Predictor(plain.system, plain.tokenizer, plain.languages, plain.config, None, weight)


def test_a_match_that_knows_as_much_as_the_first_stage_weighs_as_much():
    settled = weigh(model(known()), corpus(60, 1))
    assert settled.weight == 1
    assert settled.queries == 120
    assert settled.recalls[1.0] == max(settled.recalls.values())
    first = retrieve(model(known()), corpus(60, 1)).json["languages"]["zh"]["first"]["mean_recall"]
    assert settled.recalls[0.0] == pytest.approx(first)
    for weight in WEIGHTS:
        found = retrieve(model(known(), weight), corpus(60, 1)).json["languages"]["zh"]
        assert found["reranked"]["mean_recall"] == pytest.approx(settled.recalls[weight])
        assert found["gain"] == pytest.approx(settled.recalls[weight] - first)


def test_a_match_that_knows_nothing_weighs_nothing():
    assert [weigh(model(known(seed, odds=0.0)), corpus(60, 1)).weight for seed in range(5)] == [0] * 5


def test_weight_0_is_the_first_stage_bit_for_bit_and_asks_no_match():
    predictor = model(known(), 0.0)
    found = retrieve(predictor, corpus(60, 1), samples=3)
    assert predictor.system.asked == []
    for way in WAYS:
        assert (found.ranks["zh"]["reranked"][way] == found.ranks["zh"]["first"][way]).all()
    assert found.json["second_stage"]["weight"] == 0
    alone = retrieve(model(known(), kind=DualStub), corpus(60, 1), samples=3)
    assert [(one.rows, one.scores) for one in found.answers] == [(one.rows, one.scores) for one in alone.answers]
    images, texts = predictor.system.encode_images, torch.arange(3)
    first = torch.rand(3)
    encoded = images(type("Images", (), {"pixels": torch.zeros(3, 3, 4, 4, dtype=torch.uint8)}))
    assert torch.equal(predictor.final(encoded, encoded.select(texts), first), first)


def test_too_few_queries_and_no_cross_encoder_weigh_nothing():
    few = weigh(model(known(pictures=40)), corpus(40, 1))
    assert (few.weight, few.queries) == (0, 80)
    assert "fewer than 100" in few.why
    assert weigh(model(known(), kind=DualStub), corpus(60, 1)).weight == 0


def test_without_a_first_stage_the_match_alone_counts():
    assert math.isinf(weigh(model(known(), kind=MatchOnly), corpus(60, 1)).weight)
    zero, alone = (retrieve(model(known(), w, MatchOnly), corpus(60, 1)).ranks["zh"] for w in (0.0, math.inf))
    for way in WAYS:
        assert (zero["reranked"][way] == alone["reranked"][way]).all()


def test_what_is_not_matched_follows_in_the_order_of_the_first_stage():
    """By the paper's rule it is missed, by the fitted one it keeps its place."""
    first = -torch.eye(6)  # every right answer comes last
    table = Table(first, torch.randn(6, 6, 1, generator=torch.Generator().manual_seed(0)))
    ranks = {w: retrieve(model(table, w), corpus(6, 1), top_k=2).ranks["zh"] for w in (None, 1.0)}
    for way in WAYS:
        assert (ranks[None]["reranked"][way] == MISSED).all()
        assert (ranks[1.0]["reranked"][way] == 5).all()


def test_queries_of_one_picture_are_one_witness_and_queries_are_spread():
    one = Pairs([{"zh": [str(k) for k in range(10)]}, {"zh": ["10"]}, {}, {"zh": ["11", "12"]}])
    truth = one.gallery("zh", None).relevance.transpose()
    assert spread_queries(truth, 2).tolist() == [0, 3]
    assert spread_queries(truth, 50).tolist() == [0, 1, 3]


@pytest.mark.parametrize("weight", WEIGHTS)
def test_weights_have_names(weight):
    assert weight_named(weight_name(weight)) == weight
    for wrong in (True, -1, "all", None, math.nan, [1]):
        with pytest.raises(ValueError, match="is no weight"):
            weight_named(wrong)
