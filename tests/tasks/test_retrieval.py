"""Retrieval of systems whose scores are known: first stage, re-ranking, truth, broken pictures, batch sizes."""

import json

import numpy as np
import pytest
import torch

from tests.systems.common import build
from tests.tasks.stub import DualStub, FusionStub, MatchOnly, Pairs, Table, ready
from tuwen.cli.evaluate import print_measured
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.corpus import captions_apart
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.systems.system import Scores
from tuwen.tasks.metrics import MISSED
from tuwen.tasks.retrieval import Side, evaluate_retrieval, retrieve


def corpus(count=12, texts_each=2, **options):
    """Picture k has texts "k * texts_each" ... in zh."""
    rows = [{"zh": [str(k * texts_each + j) for j in range(texts_each)]} for k in range(count)]
    return Pairs(rows, **options)


def tables(images, texts, seed=0, heads=2):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(images, texts, generator=generator)
    return Table(first, torch.randn(images, texts, heads, generator=generator))


def run(system, of, table=None, **options):
    return retrieve(ready(system, table or of), of, **options)


def test_json_has_the_published_shape():
    found = evaluate_retrieval(ready(FusionStub(tables(12, 24)), ["zh"]), corpus())
    assert json.loads(json.dumps(found)) == found
    assert {k: found[k] for k in ("system", "corpus", "split", "task", "images", "texts")} == {
        "system": "stub", "corpus": "pairs", "split": "test", "task": "retrieval", "images": 12, "texts": 24,
    }  # fmt: skip
    for stage in ("first", "reranked", "chance"):
        recalls = found["languages"]["zh"][stage]
        six = [recalls[way][name] for way in ("image_to_text", "text_to_image") for name in ("r1", "r5", "r10")]
        assert recalls["mean_recall"] == pytest.approx(np.mean(six))
    assert found["languages"]["zh"]["chance"]["text_to_image"]["r1"] == pytest.approx(100 / 12)


def test_published_protocol_by_hand(capsys):
    """Text 1 stands at pictures 0 and 1: merged it is right for both, published it is two texts of one picture each."""
    of = Pairs([{"zh": ["0", "1"]}, {"zh": ["1", "2"]}, {"zh": ["3"]}])
    scores = torch.tensor([[0.9, 0.5, 0.3, 0.1], [0.1, 0.8, 0.2, 0.4], [0.2, 0.1, 0.9, 0.6]])  # [picture, text]
    system = DualStub(Table(scores))
    merged, published = run(system, of), run(system, of, protocol="published")
    assert (merged.json["protocol"], merged.json["texts"]) == ("merged", 4)
    assert (published.json["protocol"], published.json["texts"]) == ("published", 5)
    ranks = merged.ranks["zh"]["first"]
    assert ranks["text_to_image"].tolist() == [0, 0, 2, 0]
    assert ranks["image_to_text"].tolist() == [0, 0, 1]
    ranks = published.ranks["zh"]["first"]
    assert ranks["text_to_image"].tolist() == [0, 1, 0, 2, 0]
    assert ranks["image_to_text"].tolist() == [0, 1, 1]  # the other picture's equal text stands before picture 1's own
    recalls = published.json["languages"]["zh"]
    assert recalls["first"]["text_to_image"]["r1"] == pytest.approx(60)
    assert recalls["first"]["image_to_text"]["r1"] == pytest.approx(100 / 3)
    assert recalls["chance"]["text_to_image"]["r1"] == pytest.approx(100 / 3)
    print_measured(published.json)
    assert "each right for its own picture" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match="protocol must be one of merged, published, not 'karpathy'"):
        run(system, of, protocol="karpathy")


def test_a_language_without_a_text_does_not_fail_the_others():
    of = Pairs([{"en": ["0"]}, {"en": ["1"], "zh": ["1"]}])
    system = DualStub(Table(torch.eye(2)))
    measured = run(system, of, limit=1).json  # the first picture has no Chinese text
    assert list(measured["languages"]) == ["en"]
    assert measured["note"] == "not measured: no text in zh"
    assert list(run(system, of).json["languages"]) == ["en", "zh"]
    with pytest.raises(UserError, match="no text in 'zh' to measure by"):
        run(system, of, limit=1, languages=["zh"])


def test_texts_of_no_told_language_are_told_how_to_name_it():
    of = Pairs([{"und": ["0"]}, {"und": ["1"]}])
    with pytest.raises(UserError, match=r'name the language, as "texts": \{"ru": \[\.\.\.\]\} or a column text_ru'):
        run(DualStub(Table(torch.eye(2))), of, ("ru",))


def test_published_protocol_of_a_picture_in_two_rows():
    of = Pairs([{"zh": ["0"], "en": ["5"]}, {"zh": ["0", "1"]}, {"zh": ["1"]}], image_ids=[7, 7, 8])
    gallery = captions_apart(of, "zh")
    assert gallery.rows == [0, 2]
    places = [(text.text, text.row, text.place) for text in gallery.texts]
    assert places == [("0", 0, 0), ("0", 1, 0), ("1", 1, 1), ("1", 2, 0)]
    assert [gallery.relevance.images_of(k).tolist() for k in range(4)] == [[0], [0], [0], [1]]
    assert [text.text for text in captions_apart(of, None, limit=1).texts] == ["0", "5", "0", "1"]


def test_first_stage_against_a_slow_ranking():
    table = tables(12, 24)
    found = run(DualStub(table), corpus())
    scores = table.first.numpy()
    image_to_text = [min(np.argsort(-scores[i], kind="stable").tolist().index(t) for t in (2 * i, 2 * i + 1)) for i in range(12)]  # fmt: skip # noqa: E501
    text_to_image = [np.argsort(-scores[:, t], kind="stable").tolist().index(t // 2) for t in range(24)]
    assert found.ranks["zh"]["first"]["image_to_text"].tolist() == image_to_text
    assert found.ranks["zh"]["first"]["text_to_image"].tolist() == text_to_image
    assert "reranked" not in found.json["languages"]["zh"]


def test_albef_check_10_k_of_all_is_full_matching_and_k_of_one_is_the_first_stage():
    table = tables(12, 24)
    everything = run(FusionStub(table), corpus(), top_k=24).ranks["zh"]["reranked"]
    matched = table.match.mean(-1)  # the default final score: mean log-odds
    assert everything == {
        way: pytest.approx(rank) for way, rank in run(DualStub(Table(matched)), corpus()).ranks["zh"]["first"].items()
    }
    one = run(FusionStub(table), corpus(), top_k=1).json["languages"]["zh"]
    for way in ("image_to_text", "text_to_image"):
        assert one["reranked"][way]["r1"] == one["first"][way]["r1"]
        assert one["reranked"][way]["r10"] == one["reranked"][way]["r1"]  # deeper than top_k: a miss


class R2D2Score(FusionStub):
    """Mean match probability plus cosine."""

    def rerank(self, match, first):
        return match.sigmoid().mean(-1) + first


def test_r2d2_check_4_score_range_and_filler():
    table = tables(12, 24)
    table = Table(table.first.tanh(), table.match)
    system = R2D2Score(table)
    images, texts = Encoded(torch.arange(12.0)[:, None]), Encoded(torch.arange(24.0)[:, None])
    images = Encoded(images.pooled, states={"last": images.pooled})
    texts = Encoded(texts.pooled, states={"last": texts.pooled})
    side = Side(ready(system, ["zh"]), images, texts, "image_to_text", top_k=5, batch_size=7, budget=1 << 20)
    final = side.reranked(side.first(0, 12), 0)
    reranked = final != -100
    assert (reranked.sum(1) == 5).all()
    assert final[reranked].min() >= -1
    assert final[reranked].max() <= 2
    expected = table.match.sigmoid().mean(-1) + table.first
    assert torch.equal(final[reranked], expected[reranked])


def test_r2d2_check_5_a_silenced_head_adds_a_constant():
    """With one head at log-odds 0 its probability is 1/2: the ranking follows half the other's plus the cosine."""
    table = tables(12, 24)
    silenced = torch.stack([table.match[..., 0], torch.zeros(12, 24)], -1)
    found = run(R2D2Score(Table(table.first, silenced)), corpus(), top_k=24).ranks["zh"]["reranked"]
    expected = run(DualStub(Table(table.match[..., 0].sigmoid() / 2 + table.first)), corpus()).ranks["zh"]["first"]
    for way, rank in expected.items():
        assert (found[way] == rank).all()
    both = run(R2D2Score(table), corpus(), top_k=24).ranks["zh"]["reranked"]
    assert any((both[way] != expected[way]).any() for way in expected)  # a score that ignored one head would fail


def test_log_odds_below_the_filler_still_rank_above_what_was_not_reranked():
    table = tables(12, 24)
    low = run(FusionStub(Table(table.first, table.match - 1000)), corpus(), top_k=3).ranks["zh"]["reranked"]
    plain = run(FusionStub(table), corpus(), top_k=3).ranks["zh"]["reranked"]
    assert all((low[way] == plain[way]).all() for way in plain)


def test_an_answer_outside_top_k_is_missed_at_any_depth():
    first = -torch.eye(3)  # every right answer comes last
    found = run(FusionStub(Table(first, torch.zeros(3, 3, 1))), corpus(3, 1), top_k=2)
    assert (found.ranks["zh"]["reranked"]["text_to_image"] == MISSED).all()
    assert found.json["languages"]["zh"]["reranked"]["text_to_image"] == {"r1": 0, "r5": 0, "r10": 0}
    assert found.json["languages"]["zh"]["first"]["text_to_image"]["r5"] == 100


@pytest.mark.parametrize("name", ["mvptr", "bridgetower"])
def test_reranking_stays_under_the_ceiling_of_its_candidates(name):
    """MVPTR's card, check 9; BridgeTower's, check 10: pairs that were not matched never outrank those that were."""
    scenes, k = Scenes(count=16, side=32, languages=("en", "zh")), 3
    words = Tokenizer.train([text for row in range(16) for told in scenes.record(row).texts.values() for text in told])
    system = build(name, vocabulary=words.vocabulary)
    ranks = retrieve(ready(system, scenes, words, 32, 32), scenes, top_k=k).ranks
    for stages in ranks.values():
        for way, first in stages["first"].items():
            assert 0 < (first < k).sum() < len(first)
            assert (stages["reranked"][way][first >= k] == MISSED).all()
            assert (stages["reranked"][way][first < k] < k).all()


@pytest.mark.parametrize("budget", [1, 25, 1 << 20])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_batch_sizes_and_budgets_change_no_rank(budget, batch_size):
    table = tables(12, 24)
    table = Table(table.first.mul(2).round(), table.match.round())  # many ties
    expected = run(FusionStub(table), corpus(), top_k=4)
    found = run(FusionStub(table), corpus(), top_k=4, budget=budget, batch_size=batch_size)
    for stage, ways in expected.ranks["zh"].items():
        for way, rank in ways.items():
            assert (found.ranks["zh"][stage][way] == rank).all()


def test_the_default_cosine_is_the_same_bit_for_bit_in_any_block():
    generator = torch.Generator().manual_seed(0)
    vectors = (torch.randn(n, 64, generator=generator) for n in (90, 70))
    images, texts = (Encoded(torch.nn.functional.normalize(x, dim=-1)) for x in vectors)
    whole, parts = (
        Side(ready(MatchOnly(None), ["zh"]), images, texts, "text_to_image", top_k=1, batch_size=1, budget=budget)
        for budget in (1 << 20, 1)
    )
    apart = torch.cat([parts.first(k, k + 1) for k in range(70)])
    assert torch.equal(whole.first(0, 70), apart)


def test_reranking_matches_top_k_pairs_a_query_and_no_more():
    system = FusionStub(tables(12, 24))
    run(system, corpus(), top_k=4, batch_size=10)
    assert sum(system.asked) == 4 * 12 + 4 * 24
    assert max(system.asked) <= 10


def test_a_system_without_vectors_matches_all_pairs_and_says_so():
    table = tables(12, 24)
    found = run(MatchOnly(table), corpus(), top_k=2)
    assert "every picture was matched" in found.json["note"]
    assert "first" not in found.json["languages"]["zh"]
    full = run(FusionStub(table), corpus(), top_k=24).ranks["zh"]["reranked"]
    assert all((found.ranks["zh"]["reranked"][way] == full[way]).all() for way in full)


def test_broken_pictures_are_left_out_and_their_texts_asked_of_nothing():
    found = run(DualStub(tables(12, 24)), corpus(broken={0, 5})).json
    zh = found["languages"]["zh"]
    assert found["broken"] == {"truncated": 2}
    assert (found["images"], found["texts"]) == (10, 24)
    assert zh["queries"] == {"image_to_text": 10, "text_to_image": 20}
    assert zh["left_out"] == {"image_to_text": 0, "text_to_image": 4}
    with pytest.raises(UserError, match="none of 12 pictures"):
        run(DualStub(tables(12, 24)), corpus(broken=range(12)))


def test_ranks_follow_pictures_when_some_before_them_are_broken():
    perfect = torch.kron(torch.eye(12), torch.ones(1, 2))
    found = run(DualStub(Table(perfect)), corpus(broken={0, 5})).json["languages"]["zh"]["first"]
    assert found["mean_recall"] == 100


def test_one_picture_in_two_rows_and_one_text_of_two_pictures():
    rows = [{"zh": ["0"]}, {"zh": ["1"]}, {"zh": ["0", "2"]}]
    of = Pairs(rows, image_ids=[7, 7, 9])  # rows 0 and 1 are one picture; text 0 belongs to both pictures
    scores = torch.zeros(3, 3)
    scores[0, 2] = 1  # picture 0's best text is wrong, picture 2's is right by index
    found = run(DualStub(Table(scores)), of)
    assert (found.json["images"], found.json["texts"]) == (2, 3)
    assert found.ranks["zh"]["first"]["image_to_text"].tolist() == [1, 0]
    assert found.ranks["zh"]["first"]["text_to_image"].tolist() == [0, 0, 1]


def test_languages_are_measured_apart_and_pictures_encoded_once():
    rows = [{"zh": [f"{k}"], "en": [f"a {k}"]} for k in range(4)]
    encoded = []

    class Counting(DualStub):
        def encode_images(self, images):
            encoded.append(len(images))
            return super().encode_images(images)

    found = run(Counting(Table(torch.eye(4))), Pairs(rows)).json
    assert list(found["languages"]) == ["zh", "en"]
    assert encoded == [4]
    assert list(run(DualStub(Table(torch.eye(4))), Pairs(rows), languages=["en"]).json["languages"]) == ["en"]
    with pytest.raises(UserError, match="no language 'fr'"):
        run(DualStub(Table(torch.eye(4))), Pairs(rows), languages=["fr"])


def test_languages_are_numbered_by_the_table_of_the_run():
    seen = []

    class Noting(DualStub):
        def encode_texts(self, texts):
            seen.extend(texts.language.tolist())
            return super().encode_texts(texts)

    of = Pairs([{"zh": ["0"], "en": ["0"]}])
    system = Noting(Table(torch.eye(1)))
    assert list(run(system, of, table=["de", "en"]).json["languages"]) == ["en"]
    assert seen == [1]
    with pytest.raises(UserError, match="trained on de"):
        run(system, of, table=["de"])
    with pytest.raises(UserError, match="knows no language 'zh'"):
        run(system, of, table=["de", "en"], languages=["zh"])


def test_text_to_image_alone_has_a_mean_of_three():
    found = run(DualStub(tables(12, 24)), corpus(), directions=["text_to_image"]).json["languages"]["zh"]["first"]
    assert set(found) == {"text_to_image", "mean_recall"}
    assert found["mean_recall"] == pytest.approx(np.mean(list(found["text_to_image"].values())))


def test_scores_that_differ_by_direction_are_used_each_their_own_way():
    forward, backward = torch.eye(3), -torch.eye(3)

    class TwoWay(DualStub):
        def scores(self, images, texts):
            i, t = images.pooled[:, 0].long(), texts.pooled[:, 0].long()
            return Scores(forward[i][:, t], backward[i][:, t])

    found = run(TwoWay(Table(forward)), corpus(3, 1)).json["languages"]["zh"]["first"]
    assert found["image_to_text"]["r1"] == 100
    assert found["text_to_image"]["r1"] == 0


def test_answers_are_the_best_five_with_their_scores():
    table = tables(12, 24)
    answers = run(DualStub(table), corpus(), samples=3).answers
    assert [answer.text for answer in answers] == ["0", "12", "23"]
    for answer in answers:
        column = table.first[:, int(answer.text)]
        assert answer.rows == column.argsort(descending=True)[:5].tolist()
        assert answer.scores == column[answer.rows].tolist()
        assert answer.right == [row == int(answer.text) // 2 for row in answer.rows]


def test_the_system_is_left_in_the_mode_it_was_in():
    system = DualStub(tables(12, 24)).train()
    run(system, corpus())
    assert system.training
