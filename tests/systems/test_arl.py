"""ARL's losses against the slow version, value and gradient, and its card's checks of section 11."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from tests.reference import albef as albef_slow
from tests.reference import arl as slow
from tests.systems.common import (
    PROGRESS,
    VOCABULARY,
    assert_same_gradients,
    build,
    example,
    gradients,
    random,
    shaken,
    watched,
)
from tuwen.data.batch import Batch, Spans
from tuwen.data.lexicons.lexicon import Lexicon
from tuwen.data.spans import KINDS
from tuwen.errors import UserError
from tuwen.nn.knowledge import GraphAttention, slots_of, without_hidden
from tuwen.objectives.masked_pixels import masked_pixels
from tuwen.objectives.matching import ranking_loss
from tuwen.systems import arl as module
from tuwen.systems.arl import EachAnswer
from tuwen.tasks.heads import binary_loss

EDGES = [(0, 0, 1), (1, 0, 2), (3, 1, 2), (0, 1, 1), (4, 0, 4)]  # head, kind, tail: two kinds between 0 and 1
LEXICON = Lexicon(tuple("abcde"), tuple({"en": (name,)} for name in "abcde"), ("is a", "in"), np.array(EDGES))
KNOWING = dataclasses.replace(VOCABULARY, lexicon=LEXICON)
# row of the batch, first and last token + 1, entity; rows 0, 2 and 4 mention some, one of them twice
MENTIONS = [(0, 1, 3, 2), (0, 4, 5, 0), (0, 6, 8, 2), (2, 2, 3, 4), (2, 3, 5, 1), (4, 1, 2, 3)]


def linked(rows: list[int] | None = None, shift: int = 0) -> Batch:
    """The common batch with entity spans, among spans of another kind and of an entity nobody knows."""
    batch = example(rows)
    rows = list(range(6)) if rows is None else rows
    spans = [(k, s, e, i + shift, 2) for k, row in enumerate(rows) for r, s, e, i in MENTIONS if r == row]
    spans += [(0, 1, 2, 3, 0), (0, 2, 3, 99, 2)]
    columns = torch.tensor(spans).unbind(1)
    assert KINDS[2] == "entity"
    return dataclasses.replace(batch, texts=dataclasses.replace(batch.texts, spans=Spans(*columns)))


def system_of(**changes):
    fusion = dataclasses.replace(module.ARLConfig.sized("tiny").fusion, layers=2)
    knowledge = module.KnowledgeStreamConfig(width=8, heads=2, slots=4, dropout=0.0)
    changes = {"fusion": fusion, "knowledge": knowledge, "pixels_from": 1, "mask_share": 0.4, **changes}
    return shaken(build("arl", vocabulary=KNOWING, **changes))


GRAPH = sorted({(a, b) for a, _, b in EDGES} | {(k, k) for k in range(5)})


def slow_fused(system, seen, words, slots, layers=2):
    """(text, picture) of one row: seen [I, Wi], words [L, Wt] without padding; slots: (entity vector, tokens)."""
    fusion = system.fusion
    x = fusion.text_input(words) + fusion.types.weight[0]
    y = fusion.image_input(seen) + fusion.types.weight[1]
    z = torch.stack([vector for vector, _ in slots]) if slots else None
    for text, image in list(zip(fusion.text_layers, fusion.image_layers, strict=True))[:layers]:
        (new, z), y_new = slow.layer(text, x, y, z, [tokens for _, tokens in slots]), None
        y_new = image.attention_norm(y + image.attention(y[None])[0])
        y_new = image.cross_norm(y_new + image.cross(y_new[None], x[None])[0])
        y = image.feed_forward_norm(y_new + image.feed_forward(y_new))
        x = new
    return x, y


def slots_by_hand(row: int, vectors, hidden=()) -> list:
    """The first four mentions of a row in order; none of an entity any mention of which is hidden."""
    mine = sorted((s, e, i) for r, s, e, i in MENTIONS if r == row)[:4]
    gone = {i for s, e, i in mine if any(token in hidden for token in range(s, e))}
    return [(vectors[i], list(range(s, e))) for s, e, i in mine if i not in gone]


def slow_terms(system, batch, progress, masked, labels, kept, hidden, swaps) -> dict[str, torch.Tensor]:
    vectors = slow.entities(system.entities, GRAPH)
    tower, text = system.encoders["image"], system.encoders["text"]
    tokens = tower(batch.images.pixels)

    def words(ids, row):
        real = batch.texts.mask[row]
        return text(ids[row : row + 1, real], real[real][None])[0]

    def pooled(x, y):
        return torch.cat([system.text_pooler(x[0]).tanh(), system.image_pooler(tower.pool(y[None])[0]).tanh()])

    clean = [words(batch.texts.ids, row) for row in range(len(batch))]
    read, seen, mentioned, pairs, words_of, painted = [], [], [], [], [], []
    few = tower(batch.images.pixels, kept=kept)
    for row in range(len(batch)):
        x, y = slow_fused(system, tokens[row], clean[row], [], layers=0)
        read.append(system.text_query(x[0]))
        seen.append(system.image_query(tower.pool(y[None])[0]))
        mentioned.append([any(r == row and i == k for r, _, _, i in MENTIONS) for k in range(5)])
        pairs.append(
            system.match_head(pooled(*slow_fused(system, tokens[swaps[row]], clean[row], slots_by_hand(row, vectors))))
        )
        gone = (labels[row] >= 0).nonzero()[:, 0].tolist()
        x, _ = slow_fused(system, tokens[row], words(masked.ids, row), slots_by_hand(row, vectors, gone))
        word_logits = system.word_head(x, text.words.weight)
        words_of.append(torch.nn.functional.pad(word_logits, (0, 0, 0, labels.shape[1] - len(x))))
        _, y = slow_fused(system, few[row], clean[row], slots_by_hand(row, vectors), layers=1)
        painted.append(system.painter(tower.grid(y[None]), kept[row : row + 1])[0])
    pixels = (batch.images.pixels / 255 - tower.mean) / tower.std
    return {
        "align": slow.alignment(torch.stack(seen), vectors, mentioned)
        + slow.alignment(torch.stack(read), vectors, mentioned),
        "matching": 0.1 * albef_slow.matching(torch.stack(pairs), [int(swaps[k] == k) for k in range(len(batch))]),
        "masked_words": albef_slow.masked_words(torch.stack(words_of), None, labels, 0.0),
        "masked_pixels": masked_pixels(torch.stack(painted), pixels, hidden, system.config.image.patch),
    }


@pytest.mark.parametrize("step", [0, 3])
def test_every_term_and_gradient_is_the_slow_version_s(monkeypatch, step):
    system, batch = system_of(), linked()
    masks, patches = watched(monkeypatch, module, "mask_words"), watched(monkeypatch, module, "hide_random")
    wrong = watched(monkeypatch, module, "one_wrong")
    progress = dataclasses.replace(PROGRESS, step=step)
    losses = system(batch, progress)
    (masked, labels), (kept, hidden) = masks[0][1], patches[0][1]
    draws = progress.uniform(batch, 2, "wrong pictures")[:, 0]
    half = draws.argsort()[:3].tolist()
    swaps = [int(wrong[0][1][k]) if k in half else k for k in range(6)]
    assert all(not batch.same_here()[k, swaps[k]] for k in half)
    want = slow_terms(system, batch, progress, masked, labels, kept, hidden, swaps)
    assert set(losses.terms) == set(want)
    for name, value in want.items():
        assert float(losses.terms[name].detach()) == pytest.approx(float(value.detach()), abs=1e-9), name
        assert_same_gradients(gradients(losses.terms[name], system), gradients(value, system))


# ---- the card's checks


def test_the_end_of_a_text_is_never_hidden_and_a_word_always_is(monkeypatch):
    """Section 10: specials are excluded, and the budget is of the padded length, so that every text tells something."""
    batch, masks = linked(), watched(monkeypatch, module, "mask_words")
    words = batch.texts.mask & (batch.texts.ids != VOCABULARY.cls) & (batch.texts.ids != VOCABULARY.sep)
    for share in (1.0, 1e-12):
        system_of(mask_share=share, whole_entities=False)(batch, PROGRESS)
        hidden = masks.pop()[1][1] >= 0
        assert hidden.sum(1).tolist() == (words.sum(1) if share == 1 else words.any(1).long()).tolist()
        assert bool((hidden <= words).all())


def test_a_mention_matrix_has_ones_at_its_tokens_and_slots_have_no_order():
    """Check 1."""
    batch = linked()
    ids, mentions = slots_of(batch.texts.spans.of(2), batch.texts, 5, 4)
    assert ids[0].tolist() == [2, 0, 2, -1]
    assert mentions[0].int().tolist() == [
        [0, 1, 1, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 1, 0, 0],
        [0] * 10,
    ]
    assert ids[1].tolist() == [-1] * 4
    few, _ = slots_of(batch.texts.spans.of(2), batch.texts, 5, 2)
    assert few[0].tolist() == [2, 0]
    system = system_of().eval()
    images, entities = system.encode_images(batch.images), system.entities()
    order = torch.tensor([3, 1, 0, 2])
    plain = system.read(batch.texts, (ids, mentions), entities)
    other = system.read(batch.texts, (ids[:, order], mentions[:, order]), entities)
    torch.testing.assert_close(system.match(images, plain), system.match(images, other), rtol=0, atol=1e-12)
    # only tokens of a mention are added to: with one layer and no text attention the others do not know of it
    layer = system.fusion.text_layers[0]
    x = system.fusion.entered_texts(plain)
    added = plain.states["mentions"].transpose(1, 2) @ layer.to_text(plain.states["entities"])
    assert (added[0].abs().sum(-1) > 0).nonzero()[:, 0].tolist() == [1, 2, 4, 6, 7]
    assert x.shape == added.shape


def test_texts_without_entities_are_numbers_and_padding_is_none():
    """Check 2: empty slots are zeros whatever stands beside; no NaN where a row has none."""
    system, batch = system_of().eval(), linked()
    images = system.encode_images(batch.images)
    texts = system.encode_texts(dataclasses.replace(batch.texts, spans=None))
    assert not texts.states["entities"].any()
    odds = system.match(images, texts)
    assert torch.isfinite(odds).all()
    wide = dataclasses.replace(system.config.knowledge, slots=9)
    system.config = dataclasses.replace(system.config, knowledge=wide)
    more = system.match(images, system.encode_texts(batch.texts))
    system.config = dataclasses.replace(system.config, knowledge=dataclasses.replace(wide, slots=4))
    torch.testing.assert_close(more, system.match(images, system.encode_texts(batch.texts)), rtol=0, atol=1e-12)
    # row 1 has no entity: with those of others in the batch it scores as without
    assert (more[[0, 2, 4]] != odds[[0, 2, 4]]).all()
    torch.testing.assert_close(more[[1, 3, 5]], odds[[1, 3, 5]], rtol=0, atol=1e-12)


def test_without_what_is_added_the_layer_still_has_its_own_output_layer():
    """Check 3: not plain METER."""
    system, batch = system_of().eval(), linked()
    layer = system.fusion.text_layers[0]
    with torch.no_grad():
        layer.to_text.weight.zero_()
        layer.to_text.bias.zero_()
    texts, images = system.encode_texts(batch.texts), system.encode_images(batch.images)
    x, y = system.fusion.entered_texts(texts), system.fusion.entered_images(images)
    states, mask = texts.states, texts.state_mask
    ours, _ = layer(x, mask, y, states["entities"], states["mentions"] > 0)
    plain = layer.text.attended(x, mask, y)
    torch.testing.assert_close(ours, layer.text.fed(layer.norm(layer.out(plain) + plain)))
    assert (ours - layer.text(x, mask, y)).abs().max() > 1e-3


def test_an_entity_with_a_hidden_token_leaves_and_the_others_move_up():
    """Check 4; with it go its other mentions."""
    batch = linked()
    ids, mentions = slots_of(batch.texts.spans.of(2), batch.texts, 5, 4)
    hidden = torch.zeros_like(batch.texts.mask)
    hidden[0, 2] = True  # of the first mention of entity 2
    hidden[2, 0] = True  # of no mention
    few, places = without_hidden(ids, mentions, hidden)
    assert few[0].tolist() == [0, -1, -1, -1]
    assert places[0].int().sum(1).tolist() == [1, 0, 0, 0]
    assert places[0, 0, 4]
    assert torch.equal(few[1:], ids[1:])
    assert torch.equal(places[1:], mentions[1:])


def test_hidden_pixels_are_told_from_the_middle_of_the_fusion():
    """Check 5: a quarter of the patches is seen, what is told of these costs nothing; check 6: later layers learn
    nothing of it."""
    system, batch = system_of(), linked()
    painted = torch.zeros(6, 16, 3 * 64, dtype=torch.float64)
    pixels, hidden = random(6, 3, 32, 32, seed=1), torch.zeros(6, 16, dtype=torch.bool)
    hidden[:, 4:] = True
    changed = painted.clone()
    changed[:, :4] = 9.0
    assert float(masked_pixels(painted, pixels, hidden, 8)) == float(masked_pixels(changed, pixels, hidden, 8))
    kept, gone = module.hide_random(torch.rand(2, 324, generator=torch.Generator().manual_seed(0)), 0.75)
    assert kept.shape == (2, 81)  # and the class token: 82
    assert gone.sum(1).tolist() == [243, 243]
    moved = gradients(system(batch, PROGRESS).terms["masked_pixels"], system)
    for name, gradient in moved.items():
        if name.startswith(("fusion.text_layers.1", "fusion.image_layers.1", "text_pooler", "match_head")):
            assert gradient is None or not gradient.any(), name
    assert moved["fusion.image_layers.0.feed_forward.0.weight"].abs().max() > 0


def test_alignment_is_of_every_entity_and_reaches_what_the_graph_begins_with():
    """Check 7; both sides, by hand at zero."""
    system, batch = system_of(), linked()
    losses = system(batch, PROGRESS)
    assert gradients(losses.terms["align"], system)["entities.vectors.weight"].abs().max() > 0
    with torch.no_grad():
        for query in (system.image_query, system.text_query):
            query[2].weight.zero_()
            query[2].bias.zero_()
    assert float(system(batch, PROGRESS).terms["align"].detach()) == pytest.approx(2 * math.log(2))


def test_sixteen_equal_candidates_cost_their_logarithm():
    """Check 9, and candidates that are right for the picture too do not count."""
    odds, counts = torch.zeros(3, 16), torch.ones(3, 16, dtype=torch.bool)
    assert float(ranking_loss(odds, counts)) == pytest.approx(math.log(16))
    counts[:, 8:] = False
    assert float(ranking_loss(odds, counts)) == pytest.approx(math.log(8))
    system, batch = system_of(), linked()
    encoded = system.encode(batch, PROGRESS)
    with torch.no_grad():
        for parameter in system.match_head.parameters():
            parameter.zero_()
    loss = system.retrieval(encoded, batch, PROGRESS).terms["ranking"]
    wrong = (~batch.same_here()).sum(1).double()
    assert float(loss.detach()) == pytest.approx(float((1 + wrong).log().mean()))


def test_answers_are_told_each_for_itself():
    """Check 10: 498 answers at zero cost 498 ln 2."""
    assert float(binary_loss(torch.zeros(2, 498), torch.eye(2, 498))) == pytest.approx(345.19, abs=5e-3)
    head = system_of().adapt("vqa", 7)
    assert isinstance(head, EachAnswer)
    assert head.binary
    assert head[0].in_features == head[0].out_features == 2 * system_of().config.fusion.width
    assert head[3].out_features == 7


def test_the_graph_knows_no_kinds_of_edges():
    """Check 12; and which way an edge goes counts."""
    system = system_of()
    kinds = np.array([(a, 0, b) for a, _, b in EDGES])
    turned = np.array([(b, k, a) for a, k, b in EDGES])
    tables = []
    for edges in (LEXICON.edges, kinds, turned):
        vocabulary = dataclasses.replace(VOCABULARY, lexicon=dataclasses.replace(LEXICON, edges=edges))
        other = shaken(build("arl", vocabulary=vocabulary, knowledge=system.config.knowledge)).eval()
        tables.append(other.entities())
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])


@torch.no_grad()
def test_edges_of_the_graph_are_left_out_by_chance_in_training_alone():
    """As torch_geometric's layer: shares of the neighbours, of which half are dropped and the others count twice."""
    layer = GraphAttention(4, 4, 1, dropout=0.5)
    layer.values.weight.copy_(torch.eye(4))
    edges = torch.tensor([(k, 0) for k in range(4)])  # all alike likely: a quarter each
    torch.manual_seed(0)
    seen = torch.stack([layer(torch.eye(4), edges)[0] for _ in range(200)])
    assert set(seen.unique().tolist()) == {0.0, 0.5}
    assert abs(float(seen.mean()) - 0.25) < 0.02
    assert layer.eval()(torch.eye(4), edges)[0].tolist() == [0.25] * 4


def test_a_step_reads_the_graph_once():
    """Also where a part of it is left out by chance: all losses see the same entities."""
    system, calls = system_of().train(), []
    system.entities.register_forward_hook(lambda *_: calls.append(1))
    system(linked(), PROGRESS)
    assert calls == [1]


def test_a_run_takes_the_lexicon_s_vectors_and_is_refused_without_one():
    vectors = random(5, 8, seed=2).float().numpy()
    vocabulary = dataclasses.replace(VOCABULARY, lexicon=dataclasses.replace(LEXICON, vectors=vectors))
    own = module.KnowledgeStreamConfig(width=8, heads=2)
    system = build("arl", vocabulary=vocabulary, knowledge=own)
    system.begin()
    assert torch.equal(system.entities.vectors.weight, torch.from_numpy(vectors))
    with pytest.raises(UserError, match=r"have 8 numbers, not 32; set model\.knowledge\.width=8"):
        build("arl", vocabulary=vocabulary).begin()
    with pytest.raises(UserError, match="reads entities of a lexicon"):
        build("arl").begin()
