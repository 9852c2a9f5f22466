"""MVPTR: its five losses against slow versions, one text and picture at a time, and the card's checks (section 11)."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from tests.reference import albef as slow
from tests.systems.common import (
    PROGRESS,
    VOCABULARY,
    WORDS,
    assert_same_gradients,
    build,
    example,
    gradients,
    shaken,
    watched,
)
from tuwen.data.batch import Batch, Spans, Texts
from tuwen.objectives import matching
from tuwen.objectives.contrastive import contrastive
from tuwen.objectives.matching import hardest_negatives
from tuwen.systems.mvptr import MVPTR
from tuwen.systems.system import Progress

V, ROWS, PLACES = VOCABULARY.size, 30, 6
# text, start, end, id, kind (1 phrase, 2 entity); texts 3 and 5 have none
SPANS = [
    (0, 1, 4, 501, 1), (0, 3, 4, 502, 2), (0, 5, 7, 503, 2), (1, 1, 3, 504, 1), (1, 2, 3, 505, 2),
    (2, 2, 4, 506, 1), (2, 2, 4, 506, 2), (4, 1, 6, 507, 2),
]  # fmt: skip
TAGS = [[2, 11, 12, 3], [2, 21, 3], [2, 11, 12, 3], [2, 22, 23, 24, 25, 26, 27, 28, 3], [2, 3], [2, 30, 31, 3]]


def phrased(rows: list[int] | None = None) -> Batch:
    """The common batch with spans and tags."""
    rows = list(range(len(WORDS))) if rows is None else rows
    batch = example(rows)
    table = torch.tensor([(k, *span[1:]) for k, row in enumerate(rows) for span in SPANS if span[0] == row])
    spans = Spans(*table.reshape(-1, 5).long().unbind(1))
    longest = max(len(TAGS[row]) for row in rows)
    tags = torch.tensor([TAGS[row] + [0] * (longest - len(TAGS[row])) for row in rows])
    columns = {"tags": Texts(tags, tags != 0, torch.zeros(len(rows), dtype=torch.int64))}
    return dataclasses.replace(batch, texts=dataclasses.replace(batch.texts, spans=spans), columns=columns)


def model(**changes) -> MVPTR:
    options = {"places": PLACES, "phrases": 3, "rows": ROWS, "mask_share": 0.3, **changes}
    return shaken(build("mvptr", **options))


# ---- slow versions


def text_row(row: int, ids: list[int], hidden: set[int], drawn) -> tuple[list[int], list[int]]:
    """(rows of the table, places of the phrases) of one text whose words are `ids`, by the card's section 3 and 4.3."""
    spans = sorted({span[1:4] for span in SPANS if span[0] == row})[:3]
    phrases = []
    for rank, (start, end, identity) in enumerate(spans):
        own = ids[start] if end - start == 1 else V + identity % ROWS
        whether, what, which = drawn[row][rank]
        if any(start <= k < end for k in hidden) or (whether < 0.3 and what < 0.8):
            own = VOCABULARY.mask
        elif whether < 0.3 and what < 0.9:
            own = V + int(which * ROWS)
        phrases.append(own)
    content = [i for i in ids if i != 0][:-1]
    return [*content, *phrases, 3], list(range(len(content), len(content) + len(phrases)))


def masked_words(row: int, batch: Batch) -> tuple[list[int], dict[int, int]]:
    """The words of one text with some hidden, and what was there."""
    drawn = PROGRESS.uniform(batch, 3 * batch.texts.ids.shape[1], "mask").view(len(batch), -1, 3)[row].tolist()
    ids, told = batch.texts.ids[row].tolist(), {}
    for k, (whether, what, which) in enumerate(drawn):
        if ids[k] not in (0, 2, 3) and whether < 0.3:
            told[k] = ids[k]
            ids[k] = VOCABULARY.mask if what < 0.8 else int(which * V) if what < 0.9 else ids[k]
    return ids, told


def read(system, rows: list[int]) -> Tensor:
    table = torch.cat([system.encoders.text.words.weight, system.phrase_rows.weight])
    positions = torch.cat([system.encoders.text.positions, system.further_positions])
    x = torch.stack([table[row] + positions[k] for k, row in enumerate(rows)])[None]
    return system.encoders.text.read(x, torch.ones(1, len(rows), dtype=torch.bool))[0]


def see(system, batch: Batch, row: int, concepts: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """([CLS], concepts, regions) of one picture; concepts: what stands in the places, without padding."""
    ids = [2, *concepts, *[0] * (PLACES - len(concepts)), 3]
    tags = [system.encoders.text.words.weight[i] + system.concept_positions[k] for k, i in enumerate(ids)]
    regions = system.image_to_fusion(system.encoders.image(batch.images.pixels[row : row + 1]))[0]
    kept = torch.stack([system.concept_norm(tag) for tag, i in zip(tags, ids, strict=True) if i != 0])
    states = system.visual(torch.cat([kept, regions])[None])[0]
    return states[0], states[1 : len(kept) - 1], states[len(kept) :]


def told_at(system, head, state: Tensor, word: int) -> Tensor:
    scores = head(state[None], system.encoders.text.words.weight)[0]
    assert len(scores) == V  # check 2: the words' rows alone
    return scores.exp().sum().log() - scores[word]


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum().sqrt()


def concepts_of(row: int, batch: Batch, concepts: str) -> tuple[list[int], dict[int, int]]:
    """(what stands in the places, what is to be told) of one row."""
    drawn = PROGRESS.uniform(batch, 3 * PLACES + 1, "concepts")[row].tolist()
    if concepts == "text":
        inside = [any(s == row and a <= k < b and kind == 2 for s, a, b, _, kind in SPANS) for k in range(12)]
        own = [i for k, i in enumerate(WORDS[row]) if inside[k]][:PLACES]
    else:
        own = TAGS[row][1:-1][:PLACES]
    if concepts == "text" or drawn[-1] >= 0.5:
        return [VOCABULARY.mask] * PLACES, dict(enumerate(own))
    shown, told = list(own), {}
    for k in range(len(own)):
        whether, what, which = drawn[3 * k : 3 * k + 3]
        if whether < 0.3:
            told[k] = own[k]
            shown[k] = VOCABULARY.mask if what < 0.8 else int(which * V) if what < 0.9 else own[k]
    return shown, told


def slow_terms(system, batch: Batch, concepts: str, ground: str, regions: str) -> dict[str, Tensor]:
    rows, n = range(len(batch)), len(batch)
    by_phrase = PROGRESS.uniform(batch, 9, "phrases").view(n, 3, 3).tolist()
    mcr, mlm, g_t, g_v, states, seen, places = [], [], [], [], [], [], []
    for row in rows:
        shown, told = concepts_of(row, batch, concepts)
        first, tags, patches = see(system, batch, row, shown)
        g_v.append(unit(system.image_projection(first)))
        seen.append(patches)
        mcr += [told_at(system, system.concept_head, tags[k], word) for k, word in told.items()]
        ids, hidden = masked_words(row, batch)
        line, where = text_row(row, ids, set(hidden), by_phrase)
        states.append(read(system, line))
        places.append((where, hidden))
        g_t.append(unit(system.text_projection(states[-1][0])))

    def fused(image: int, text: int) -> Tensor:
        return system.joint(torch.cat([states[text], seen[image]])[None])[0]

    joint = [fused(row, row) for row in rows]
    for row in rows:
        mlm += [told_at(system, system.word_head, joint[row][k], word) for k, word in places[row][1].items()]
    same = [
        [
            slow.belong(*(int(x) for x in (batch.image_id[i], batch.text_id[i], batch.image_id[j], batch.text_id[j])))
            for j in rows
        ]
        for i in rows
    ]
    scores = [[float((g_t[i] * g_v[j]).sum().detach()) for j in rows] for i in rows]
    drawn = PROGRESS.uniform(batch, 3, "matching")[:, 2].tolist()
    first_half = sorted(rows, key=lambda k: drawn[k])[: n // 2]
    logits, labels = [system.match_logits(h[:1])[0] for h in joint], [1] * n
    for row in rows:
        if row in first_half:
            image, text = max((j for j in rows if not same[row][j]), key=lambda j: scores[row][j]), row
        else:
            image, text = row, max((i for i in rows if not same[row][i]), key=lambda i: scores[i][row])
        assert image != text  # check 6
        logits.append(system.match_logits(fused(image, text)[:1])[0])
        labels.append(0)
    margin, which = [], PROGRESS.uniform(batch, 7, "grounding").tolist()
    for row in rows:
        others = [j for j in rows if not same[row][j]]
        other = others[int(which[row][6] * len(others))]
        if places[row][0]:
            pool = seen if ground == "single" else [h[len(states[k]) :] for k, h in enumerate(joint)]
            said = states[row] if ground == "single" else joint[row]
            near = {}
            for j, draws in ((row, which[row][:3]), (other, which[row][3:])):
                taken = []
                for rank, place in enumerate(places[row][0]):
                    cosines = [(unit(said[place]) * unit(region)).sum() for region in pool[j][1:]]  # no class token
                    best = sorted(cosines, key=lambda x: -float(x.detach()))[:3]
                    taken.append(best[int(draws[rank] * 3)] if regions == "top3" else best[0])
                near[j] = sum(taken) / len(taken)
            margin.append((0.2 + near[other] - near[row]).clamp(min=0))
    return {
        "masked_concepts": torch.stack(mcr).mean(),
        "contrast": slow_contrast(g_v, g_t, same, system.log_scale.exp()),
        "masked_words": torch.stack(mlm).mean(),
        "matching": slow.matching(torch.stack(logits), labels),
        "grounding": torch.stack(margin).mean(),
    }


def slow_contrast(rows: list[Tensor], columns: list[Tensor], same, scale: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for queries, keys in ((rows, columns), (columns, rows)):
        for i, query in enumerate(queries):
            scores = torch.stack([(query * key).sum() * scale for key in keys])
            right = [j for j in range(len(keys)) if same[i][j]]
            total = total - sum((scores[j] - scores.exp().sum().log()) for j in right) / len(right) / len(queries) / 2
    return total


@pytest.mark.parametrize(("concepts", "ground", "regions"), [("text", "fused", "top3"), ("tags", "single", "max")])
def test_every_term_and_gradient_is_the_slow_versions(concepts, ground, regions):
    system, batch = model(concepts=concepts, ground=ground, regions=regions), phrased()
    losses, want = system(batch, PROGRESS), slow_terms(system, batch, concepts, ground, regions)
    assert losses.terms.keys() == want.keys()
    for name, term in want.items():
        torch.testing.assert_close(losses.terms[name].double(), term.double(), rtol=0, atol=1e-6, msg=name)
    assert_same_gradients(
        gradients(losses.total.double(), system), gradients(sum(x.double() for x in want.values()), system)
    )


# ---- card, section 11


def test_phrase_rows_learn_from_the_input_alone():
    """Check 2."""
    system, batch = model(mask_share=0.0), phrased()
    gradient = gradients(system(batch, PROGRESS).terms["contrast"], system)["phrase_rows.weight"]
    used = {identity % ROWS for _, a, b, identity, _ in SPANS if b - a > 1}
    assert {k for k in range(ROWS) if gradient[k].abs().max() > 0} == used
    states = system.encode_texts(batch.texts).states["last"].detach()
    loss = system.word_loss(system.word_head, states[:, :9], batch.texts.ids[:, :9])
    assert gradients(loss, system)["phrase_rows.weight"] is None


def test_the_cross_encoder_reads_words_phrases_and_regions_alone():
    """Check 4: tags reach it only through the regions."""
    system, batch = model(concepts="tags").eval(), phrased()
    texts = system.encode_texts(batch.texts)
    assert texts.states["last"].shape[1] == batch.texts.ids.shape[1] + 3
    some, other = (
        system.see(batch.images, torch.full((6, PLACES), word), torch.ones(6, PLACES) > 0) for word in (11, 12)
    )
    joint = system.fused(some.states["last"], texts)
    assert joint.shape[1] == texts.states["last"].shape[1] + some.states["last"].shape[1]
    assert (joint != system.fused(other.states["last"], texts)).any()
    assert torch.equal(joint, system.fused(some.states["last"].clone(), texts))


@pytest.mark.parametrize("concepts", ["text", "tags"])
def test_a_text_never_changes_its_picture_nor_a_picture_its_text(concepts):
    """Check 5, in training too: concepts taken from the text do not reach the picture's encoder."""
    system, batch = model(concepts=concepts), phrased()
    before = system.encode(batch, PROGRESS)
    ids = torch.where(batch.texts.ids > 4, 44 - batch.texts.ids, batch.texts.ids)
    spans = batch.texts.spans.select(torch.arange(6))
    fewer = Spans(*(getattr(spans, name)[:3] for name in ("sequence", "start", "end", "id", "kind")))
    after = system.encode(
        dataclasses.replace(batch, texts=dataclasses.replace(batch.texts, ids=ids, spans=fewer)), PROGRESS
    )
    assert torch.equal(before["images"].pooled, after["images"].pooled)
    assert torch.equal(before["images"].states["last"], after["images"].states["last"])
    assert (before["texts"].pooled != after["texts"].pooled).any()
    pixels = dataclasses.replace(batch.images, pixels=255 - batch.images.pixels)
    after = system.encode(dataclasses.replace(batch, images=pixels), PROGRESS)
    assert torch.equal(before["texts"].pooled, after["texts"].pooled)
    assert (before["images"].pooled != after["images"].pooled).any()


def test_in_use_the_picture_is_read_as_where_no_tag_is_seen():
    system, batch = model().eval(), phrased()
    trained, used = system.encode(batch, PROGRESS)["images"], system.encode_images(batch.images)
    assert torch.equal(trained.pooled, used.pooled)
    seen = model(concepts="tags", tags_seen=1.0).eval()
    assert (seen.encode(batch, PROGRESS)["images"].pooled != seen.encode_images(batch.images).pooled).any()


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_without_a_class_token_the_regions_are_pooled_as_the_tower_pools(pool):
    image = dataclasses.replace(MVPTR.Config.sized("tiny").image, pool=pool)
    system, batch = model(image=image), phrased()
    vectors = system.encode_images(batch.images).pooled
    for row in range(6):
        _, _, regions = see(system, batch, row, [VOCABULARY.mask] * PLACES)
        assert len(regions) == 16
        whole = torch.stack([getattr(column, pool)() for column in regions.T])
        torch.testing.assert_close(vectors[row], unit(system.image_projection(whole)), rtol=0, atol=1e-9)


def test_hardest_negatives_are_wrong_and_of_the_greatest_score():
    """Check 6."""
    scores = torch.tensor([[9.0, 1, 5], [2, 9, 3], [1, 7, 9]])
    same = torch.eye(3, dtype=torch.bool)
    same[2, 1] = True
    assert hardest_negatives(scores, same)[0].tolist() == [2, 2, 0]
    assert hardest_negatives(scores, torch.ones(3, 3, dtype=torch.bool))[1].tolist() == [False] * 3


def test_negatives_are_drawn_by_the_scores_times_the_hardness(monkeypatch):
    called, batch = watched(monkeypatch, matching, "hard_negatives"), phrased()
    for hardness in (0.25, 1.0):
        model(negatives="drawn", hardness=hardness)(batch, PROGRESS)
    by_text, by_image, whole, _ = (scores for (scores, *_), _ in called)
    assert torch.equal(by_text, 0.25 * whole)
    assert torch.equal(by_image, 0.25 * whole.T)


@pytest.mark.parametrize(("negatives", "hardness"), [("hardest", 1.0), ("drawn", 1.0), ("drawn", 0.25)])
def test_the_final_score_makes_up_for_how_negatives_were_drawn(negatives, hardness):
    """Of a row with chances p, negatives drawn by q = softmax(hardness s): the best log-odds are log p - log q."""
    system = model(negatives=negatives, hardness=hardness)
    p, cosine = torch.tensor([0.5, 0.1, 0.3, 0.1]).double(), torch.tensor([0.3, 0.6, -0.2, 0.4]).double()
    drawn_by = (hardness * cosine * system.log_scale.exp()).log_softmax(0)
    log_odds = p.log() - (drawn_by if negatives == "drawn" else 0)
    final = system.rerank(log_odds[:, None], cosine).double()
    torch.testing.assert_close(final - final[0], (p / p[0]).log(), rtol=0, atol=1e-5)


def test_contrast_by_hand():
    """Check 7."""
    eye, same = torch.eye(2, dtype=torch.float64), torch.eye(2, dtype=torch.bool)
    assert float(contrastive(eye, eye, eye, eye, same, 0.07)) == pytest.approx(math.log1p(math.exp(-1 / 0.07)))
    a, b = torch.tensor([[1.0, 0, 0]] * 2).double(), torch.tensor([[0.0, 1, 0]] * 2).double()
    assert float(contrastive(a, b, a, b, same, 0.07)) == pytest.approx(math.log(2))
    assert float(build("mvptr").log_scale.detach().exp()) == pytest.approx(1 / 0.07)


def test_a_batch_without_phrases_has_no_grounding_loss():
    """Check 8, where the official code gives no number."""
    system, batch = model(), phrased([3, 5])
    assert batch.texts.spans.sequence.numel() == 0
    loss = system(batch, PROGRESS).terms["grounding"]
    assert float(loss.detach()) == 0
    assert all(g is None or bool(torch.isfinite(g).all()) for g in gradients(loss, system).values())


def test_two_passes_in_evaluation_are_one():
    """Check 10: while training the region is drawn, in evaluation it is the nearest."""
    system, batch = model(), phrased()
    assert system(batch, PROGRESS).terms["grounding"] != system.eval()(batch, PROGRESS).terms["grounding"]
    assert torch.equal(system(batch, PROGRESS).total, system(batch, PROGRESS).total)


def test_padding_and_rows_beside_change_nothing():
    system, batch = model().eval(), phrased()
    texts, images = system.encode_texts(batch.texts), system.encode_images(batch.images)
    together = system.match(images, texts)
    for row in range(6):
        alone = phrased([row])
        found = system.match(system.encode_images(alone.images), system.encode_texts(alone.texts))
        torch.testing.assert_close(found, together[row : row + 1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("ground", ["fused", "single"])
def test_heat_is_the_cosine_of_phrases_and_regions(ground):
    system, batch = model(ground=ground).eval(), phrased()
    heat = system.locate(batch.images, batch.texts).heat
    assert heat.shape == (6, 4, 4)
    regions = system.encode_images(batch.images).states["last"]
    texts = system.encode_texts(batch.texts)
    joint = system.fused(regions, texts)
    count = texts.states["last"].shape[1]
    pool, said = (joint[:, count:], joint) if ground == "fused" else (regions, texts.states["last"])
    places = {0: [8, 9, 10], 1: [3, 4], 3: [0]}  # text 3 has no phrase: [CLS]
    for row, where in places.items():
        meant = unit(sum(unit(said[row, k]) for k in where))
        cosine = torch.stack([(unit(region) * meant).sum() for region in pool[row, 1:]])
        torch.testing.assert_close(heat[row].flatten(), cosine, rtol=0, atol=1e-9)


def test_what_it_asks_of_the_data():
    config = MVPTR.Config.sized("tiny")
    assert MVPTR.reads(config).spans == ("phrase", "entity")
    assert not MVPTR.needs(config).tags
    assert MVPTR.needs(dataclasses.replace(config, concepts="tags")).tags
    with pytest.raises(ValueError, match="negatives must be one of hardest, drawn"):
        dataclasses.replace(config, negatives="all")
    with pytest.raises(ValueError, match="hardness must lie between 0 and 1, got 2"):
        dataclasses.replace(config, hardness=2.0)


def test_a_tag_replaced_by_the_id_of_padding_stays_a_place(monkeypatch):
    """What is drawn in its place is read like any other word; what it was is told from there."""
    system, batch = model(concepts="tags", tags_seen=1.0, mask_share=1.0), phrased()
    draws = torch.full((6, 3 * PLACES + 1), 0.0, dtype=torch.float64)
    draws[:, 1:-1:3] = 0.85  # another id, and that the first: padding's
    monkeypatch.setattr(Progress, "uniform", lambda self, batch, count, purpose: draws[:, :count])
    concepts, real, told = system.hidden_concepts(batch, PROGRESS)
    assert (concepts[told >= 0] == VOCABULARY.pad).all()
    assert torch.equal(real, told >= 0)
    monkeypatch.undo()
    one, other = (system.see(batch.images, concepts, mask).pooled for mask in (real, torch.zeros_like(real)))
    assert (one - other).abs().amax(1)[:2].min() > 1e-4


def test_no_phrase_is_grounded_in_the_class_token():
    """However near the class token lies to every phrase, it is taken for no region."""
    system, batch = model(ground="single", regions="top3"), phrased()
    images, texts = system.encode(batch, PROGRESS).values()
    states = images.states["last"].clone()
    text, _ = system.hidden_words(batch, PROGRESS)
    values = []
    for factor in (1.0, -5.0):
        states[:, 0] = factor * texts.states["last"].sum(1)
        seen = dataclasses.replace(images, states={"last": states})
        values.append(system.grounding(None, seen, texts, text, batch, PROGRESS))
    assert torch.equal(*values)
    assert float(values[0].detach()) > 0
