"""BagFormer's losses against loops, value and gradient, and the checks of its card (section 11)."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from tests.systems.common import (
    IMAGE_IDS,
    PROGRESS,
    TEXT_IDS,
    VOCABULARY,
    assert_same_gradients,
    build,
    example,
    gradients,
    shaken,
    watched,
)
from tuwen.data.batch import Batch, Spans
from tuwen.data.spans import KINDS
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.objectives import matching

ENTITY = KINDS.index("entity")
PLACES = [(0, 2, 4), (0, 4, 7), (2, 1, 3), (2, 4, 6), (4, 1, 4)]  # (text, start, end)


def spelled(batch: Batch, rows: list[int] | None = None, kind: int = ENTITY) -> Batch:
    """The example with spans."""
    rows = list(range(6)) if rows is None else rows
    places = [(k, start, end) for k, row in enumerate(rows) for text, start, end in PLACES if text == row]
    table = torch.tensor(places, dtype=torch.int64).reshape(-1, 3)
    spans = Spans(*table.unbind(1), torch.zeros(len(table)).long(), torch.full((len(table),), kind))
    return dataclasses.replace(batch, texts=dataclasses.replace(batch.texts, spans=spans))


def bag_vectors(system, batch: Batch, row: int) -> list[Tensor]:
    """A unit vector a bag but [CLS]'s, by loops."""
    length = int(batch.texts.mask[row].sum())
    states = system.encoders.text(batch.texts.ids[row : row + 1, :length], batch.texts.mask[row : row + 1, :length])[0]
    spans = {(start, end) for text, start, end in PLACES if text == row}
    inside = {k for start, end in spans for k in range(start, end)}
    pieces = sorted(spans | {(k, k + 1) for k in range(1, length) if k not in inside})
    sums = [states[start:end].sum(0) for start, end in pieces]
    return [torch.nn.functional.normalize(system.encoders.text_projection(x), dim=-1) for x in sums]


def slow_scores(system, batch: Batch, reduce: str) -> tuple[Tensor, Tensor]:
    size = len(batch)
    tokens = system.encoders.image(batch.images.pixels)
    patches = torch.nn.functional.normalize(system.encoders.image_projection(tokens), dim=-1)
    bags = [bag_vectors(system, batch, row) for row in range(size)]
    longest = batch.texts.ids.shape[1]
    to_text, to_image = [], []
    for i in range(size):
        for j in range(size):
            cosines = [[patch @ bag for bag in bags[j]] for patch in patches[i]]
            floor = [patches.new_zeros(())] if reduce == "sum" and len(bags[j]) < longest else []
            best_bags = [max([*row, *floor], key=lambda x: float(x.detach())) for row in cosines]
            best_patches = [
                max((row[k] for row in cosines), key=lambda x: float(x.detach())) for k in range(len(bags[j]))
            ]
            by = (1, 1) if reduce == "sum" else (len(best_bags), len(best_patches))
            to_text.append(sum(best_bags) / by[0])
            to_image.append(sum(best_patches) / by[1])
    return torch.stack(to_text).view(size, size), torch.stack(to_image).view(size, size)


def belong(i: int, j: int) -> bool:
    return IMAGE_IDS[i] == IMAGE_IDS[j] or TEXT_IDS[i] == TEXT_IDS[j]


def entropy(logits: list[Tensor], right: list[bool]) -> Tensor:
    log_p = torch.stack(logits).log_softmax(0)
    return -sum(log_p[k] for k in range(len(right)) if right[k]) / sum(right)


def slow_contrast(to_text: Tensor, to_image: Tensor, scale) -> Tensor:
    """Half the sum of both directions: pictures rank by to_text's rows, texts by to_image's columns."""
    size = len(to_text)
    total = to_text.new_zeros(())
    for i in range(size):
        right = [belong(i, j) for j in range(size)]
        total = total + entropy([to_text[i, j] * scale for j in range(size)], right)
        total = total + entropy([to_image[j, i] * scale for j in range(size)], right)
    return total / size / 2


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_every_term_and_gradient_is_the_slow_versions(monkeypatch, reduce):
    system, batch = shaken(build("bagformer", reduce=reduce)), spelled(example())
    negatives = watched(monkeypatch, matching, "hard_negatives")
    losses = system(batch, PROGRESS)
    scale = system.log_scale.exp() if reduce == "mean" else 1.0
    images, texts = system.encode_images(batch.images), system.encode_texts(batch.texts)
    cosine = images.pooled @ texts.pooled.T
    want = {
        "contrast": slow_contrast(cosine, cosine, 1 / system.temperature),
        "bags": slow_contrast(*slow_scores(system, batch, reduce), scale),
    }
    (wrong_image, _), (wrong_text, _) = (call[1] for call in negatives)
    pairs = [(k, k, 1) for k in range(6)]
    pairs += [(int(wrong_image[k]), k, 0) for k in range(6)] + [(k, int(wrong_text[k]), 0) for k in range(6)]
    assert len(pairs) == 18
    assert not any(belong(i, t) for i, t, label in pairs if not label)
    logits = [system.match_head(system.fuse([images.select([i])], texts.select([t])).pooled)[0] for i, t, _ in pairs]
    want["matching"] = -sum(x.log_softmax(0)[label] for x, (*_, label) in zip(logits, pairs, strict=True)) / 18
    assert set(losses.terms) == set(want)
    for name, value in want.items():
        assert float(losses.terms[name].detach()) == pytest.approx(float(value.detach()), rel=0, abs=1e-9), name
        assert_same_gradients(gradients(losses.terms[name], system), gradients(value, system))


def test_a_row_alone_has_no_wrong_partner():
    """Card, check 8: its matching is that of the one right pair; a pair is never its own negative."""
    system, batch = shaken(build("bagformer")), spelled(example([0]), [0])
    images, texts = system.encode_images(batch.images), system.encode_texts(batch.texts)
    (logits,) = system.match_head(system.fuse([images], texts).pooled)
    found = system(batch, PROGRESS).terms["matching"]
    assert float(found.detach()) == pytest.approx(float(-logits.log_softmax(0)[1].detach()))


def test_wrong_partners_are_all_equally_likely(monkeypatch):
    """Section 4: uniform over the batch, unlike ALBEF's by similarity."""
    system, batch = shaken(build("bagformer")), spelled(example())
    negatives = watched(monkeypatch, matching, "hard_negatives")
    system(batch, PROGRESS)
    assert all(not call[0][0].any() for call in negatives)


def test_a_text_scores_the_same_alone_and_in_any_batch():
    """Card, check 4: the official truncation to the fewest bags of a batch fails it."""
    system, batch = shaken(build("bagformer")).eval(), spelled(example())
    images, texts = system.encode_images(batch.images), system.encode_texts(batch.texts)
    every = system.scores(images, texts)
    for row in range(6):
        alone = spelled(example([row]), [row]).texts
        length = int(alone.mask.sum())
        short = dataclasses.replace(alone, ids=alone.ids[:, :length], mask=alone.mask[:, :length])
        one = system.scores(images, system.encode_texts(short))
        torch.testing.assert_close(one.i2t[:, 0], every.i2t[:, row], rtol=0, atol=1e-12)
        torch.testing.assert_close(one.t2i[:, 0], every.t2i[:, row], rtol=0, atol=1e-12)
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    other = system.scores(images, system.encode_texts(batch.texts.select(order)))
    torch.testing.assert_close(other.t2i, every.t2i[:, order], rtol=0, atol=1e-12)


def test_no_entities_make_the_token_arm():
    """Card, check 3: with nothing in the dictionary a bag is a token, [CLS] and padding aside."""
    system, tokens = shaken(build("bagformer")), shaken(build("bagformer", bags="token"))
    none = spelled(example(), kind=KINDS.index("word"))
    arms = [
        s.scores(s.encode_images(none.images), s.encode_texts(x))
        for s, x in ((system, none.texts), (tokens, spelled(example()).texts))
    ]
    torch.testing.assert_close(arms[0].t2i, arms[1].t2i, rtol=0, atol=1e-12)
    words = system.encode_texts(none.texts)
    assert torch.equal(words.token_mask[:, 1:], none.texts.mask[:, 1:])
    assert not words.token_mask[:, 0].any()
    bags = system.scores(system.encode_images(none.images), system.encode_texts(spelled(example()).texts)).t2i
    assert (bags - arms[0].t2i).abs()[:, 0].min() > 1e-4  # text 0 has entities
    torch.testing.assert_close(bags[:, 1], arms[0].t2i[:, 1])  # text 1 has none


def test_arms_differ_in_the_bags_alone():
    """Section 10: one factor. Same parameters, same negatives, same losses' names, whatever the bags."""
    arms = [shaken(build("bagformer", bags=bags)) for bags in ("entity", "token", "shuffled", "word")]
    names = [[name for name, _ in arm.named_parameters()] for arm in arms]
    assert names.count(names[0]) == 4
    found = []
    for arm, kind in zip(arms, ("entity", "entity", "entity", "word"), strict=True):
        found.append(arm(spelled(example(), kind=KINDS.index(kind)), PROGRESS).terms)
    for other in found[1:]:
        assert torch.equal(other["contrast"], found[0]["contrast"])
        assert torch.equal(other["matching"], found[0]["matching"])
    assert torch.equal(found[3]["bags"], found[0]["bags"])
    assert len({float(terms["bags"].detach()) for terms in found}) == 3


def test_bag_contrast_of_one_row_is_nothing_and_of_equal_rows_ln_b():
    """Card, check 7."""
    system = build("bagformer")
    one = Encoded(tokens=torch.eye(4)[None, :3])
    text = Encoded(tokens=torch.eye(4)[None, :2], token_mask=torch.ones(1, 2, dtype=torch.bool))
    assert float(system.bag_contrast(one, text, torch.ones(1, 1, dtype=torch.bool)).detach()) == 0
    five = [x.select(torch.zeros(5, dtype=torch.int64)) for x in (one, text)]
    assert float(system.bag_contrast(*five, torch.eye(5, dtype=torch.bool)).detach()) == pytest.approx(math.log(5))


def test_vectors_have_unit_norm_on_the_feature_axis():
    """Card, check 10: the official evaluation normalises along the sequence."""
    system, batch = shaken(build("bagformer")), spelled(example())
    for encoded in (system.encode_images(batch.images), system.encode_texts(batch.texts)):
        norms = encoded.tokens.norm(dim=-1)
        real = torch.ones_like(norms, dtype=torch.bool) if encoded.token_mask is None else encoded.token_mask
        torch.testing.assert_close(norms[real], torch.ones_like(norms[real]))
        torch.testing.assert_close(encoded.pooled.norm(dim=-1), torch.ones(6, dtype=torch.float64))


def test_final_score_is_the_matches_log_odds_plus_the_bag_score():
    """Card, check 9: raw in the code's form, at the learned scale in ours."""
    match, first = torch.tensor([[2.0], [-1.0]]), torch.tensor([0.5, 0.25])
    assert build("bagformer", reduce="sum").rerank(match, first).tolist() == [2.5, -0.75]
    system = build("bagformer")
    assert system.rerank(match, first).tolist() == pytest.approx([2 + 0.5 / 0.07, -1 + 0.25 / 0.07])


def test_texts_without_spans_are_refused():
    with pytest.raises(UserError, match="spans of kind entity"):
        build("bagformer").encode_texts(example().texts)


def test_sep_is_a_bag_and_cls_is_none():
    system, batch = build("bagformer"), spelled(example())
    mask = system.encode_texts(batch.texts).token_mask
    lengths = batch.texts.mask.sum(1)
    joined = [sum(end - start - 1 for text, start, end in PLACES if text == row) for row in range(6)]
    assert mask.sum(1).tolist() == [int(n) - 1 - k for n, k in zip(lengths, joined, strict=True)]
    assert (batch.texts.ids == VOCABULARY.sep).any(1).all()


def test_a_bag_stands_for_its_tokens_and_no_others():
    """Row 0: [CLS], a token, a bag of two, a bag of three, two tokens, [SEP]."""
    for reduce in ("mean", "sum"):
        system, batch = build("bagformer", reduce=reduce).eval(), spelled(example())
        length = batch.texts.ids.shape[1]
        of_bag: list[list[int]] = [[] for _ in range(length + 1)]
        for token, bag in enumerate(system.bags(batch.texts)[0].tolist()):
            of_bag[bag].append(token)
        assert of_bag[:7] == [[0], [1], [2, 3], [4, 5, 6], [7], [8], []]
        assert not any(of_bag[7:length])
        assert of_bag[length] == list(range(9, length)), "padding lies in none"


@torch.no_grad()
@pytest.mark.parametrize(("name", "changes"), [("bagformer", {"reduce": "sum"}), ("wukong", {"padding": "zeros"})])
def test_zeros_of_padding_do_not_depend_on_the_texts_beside(name, changes):
    """A text alone has no padding of a batch; it is scored as it is beside longer ones, by max(0, best)."""
    system, batch = shaken(build(name, **changes)).eval(), spelled(example())
    images, texts = system.encode_images(batch.images), system.encode_texts(batch.texts)
    together = system.scores(images, texts)
    for row in range(6):
        length = int(batch.texts.mask[row].sum())
        alone = batch.texts.select(torch.tensor([row]))
        alone = dataclasses.replace(alone, ids=alone.ids[:, :length], mask=alone.mask[:, :length])
        scores = system.scores(images, system.encode_texts(alone))
        torch.testing.assert_close(scores.i2t[:, 0], together.i2t[:, row], rtol=0, atol=1e-6)
        torch.testing.assert_close(scores.t2i[:, 0], together.t2i[:, row], rtol=0, atol=1e-6)
