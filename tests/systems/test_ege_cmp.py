"""EGE-CMP and CAPTURE: the card's section 11 on the system, streams and masks, the graph's life, arms and controls."""

from dataclasses import replace

import pytest
import torch

import tuwen
from tests.reference import ege_cmp as slow
from tests.systems.common import PROGRESS, VOCABULARY, build, example, gradients, shaken
from tuwen import systems
from tuwen.data import draws
from tuwen.data.batch import Batch, Images, Spans
from tuwen.data.lexicons.lexicon import LexiconMaker
from tuwen.data.open import open_corpus
from tuwen.errors import UserError
from tuwen.systems.system import Progress
from tuwen.tasks.retrieval import retrieve
from tuwen.training import loop
from tuwen.training.config import RunConfig

# sequence, start, end, id, kind; row 4 has no entity, and row 5 says that of row 1
SPANS = [
    [0, 2, 4, 100, 2],
    [0, 5, 7, 101, 2],
    [1, 1, 3, 102, 2],
    [2, 1, 2, 103, 2],
    [2, 3, 5, 104, 2],
    [3, 1, 3, 102, 2],
]
SPANS += [[5, 1, 2, 105, 2]]


def batch() -> Batch:
    plain = example()
    return replace(plain, texts=replace(plain.texts, spans=Spans(*torch.tensor(SPANS).unbind(1))))


def with_graph(**changes):
    """A system mid-run, in its second epoch: entities 100 to 102 are alike, 103 to 105 too."""
    system = shaken(build("ege_cmp", **changes))
    system.nodes.update(torch.arange(100, 106), torch.eye(32)[[0, 0, 0, 1, 1, 1]] + 0.01 * torch.eye(32)[:6])
    system.end_epoch(PROGRESS)
    return system


def test_graph_losses_begin_with_the_graph_and_teach_the_entity_encoder():
    """Card, check 5."""
    system, rows = shaken(build("ege_cmp", margin=1.5)), batch()
    first = system(rows, PROGRESS)
    assert float(first.terms["nodes"]) == float(first.terms["subgraphs"]) == 0
    system.after_step(first.keep, PROGRESS)
    assert system.nodes.ids.tolist() == [100, 101, 102, 103, 104, 105]
    system = with_graph(margin=1.5)
    for name in ("nodes", "subgraphs"):
        moved = gradients(system(rows, PROGRESS).terms[name], system)
        assert moved["encoders.text.words.weight"].abs().sum() > 0
        assert moved["encoders.text.stack.blocks.0.attention.query_key_value.weight"].abs().sum() > 0


def test_the_released_losses_are_constants():
    system = with_graph(ranking="released")
    terms = system(batch(), PROGRESS).terms
    assert not terms["nodes"].requires_grad
    assert not terms["subgraphs"].requires_grad
    ours, without = gradients(system(batch(), PROGRESS).total, system), build("ege_cmp", graph="none")
    without = without.double()
    without.load_state_dict(system.state_dict())
    theirs = gradients(without(batch(), PROGRESS).total, without)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, msg=name)


def test_rankings_are_of_the_mean_of_an_entitys_own_tokens():
    """Card, check 9, and the whole path against the slow version: features, graph, draws."""
    system, rows = with_graph(margin=0.9), batch()
    entities = system.entities_of(rows.texts)
    states = system.words(entities.texts)[0]
    features, ids = system.entity_features(entities, states), entities.id.tolist()
    distinct = sorted(set(ids))
    means = torch.stack(
        [torch.stack([f for f, i in zip(features, ids, strict=True) if i == d]).mean(0) for d in distinct]
    )
    assert (means[0] - means[1]).abs().max() > 1e-3  # two entities of one title
    drawn = draws.uniform(torch.tensor(distinct), 4, PROGRESS.seed, PROGRESS.step, "graph").tolist()
    likeness = system.nodes.graph.between(torch.tensor(distinct)).tolist()
    node, subgraph = system.rankings(entities.id, features, PROGRESS)
    assert float(node.detach()) == pytest.approx(float(slow.node_ranking(means, likeness, drawn, 0.9)), abs=1e-9)
    others = [row[2:] for row in drawn]
    assert float(subgraph.detach()) == pytest.approx(
        float(slow.subgraph_ranking(means, likeness, others, 0.9)), abs=1e-9
    )
    assert float(node.detach()) > 0


def test_contrasts_are_the_slow_ones():
    system, rows = shaken(build("ege_cmp")), batch()
    encoded = system.encode(rows, PROGRESS)
    terms = system.losses(encoded, rows, PROGRESS).terms
    images, texts = encoded["images"], encoded["texts"]
    same = rows.same_here()
    assert texts.states["any_entity"].tolist() == [True, True, True, True, False, True]
    for name, vectors, real in (
        ("contrast", texts.pooled, [True] * 6),
        ("entity_contrast", texts.states["entity"], texts.states["any_entity"].tolist()),
    ):
        # rows 0 and 2 show one picture, rows 1 and 3 say one text: identities of the pairs
        ids = [0, 1, 0, 1, 4, 5]
        assert torch.equal(same, torch.tensor(ids)[:, None] == torch.tensor(ids))
        theirs = slow.contrast_of_both(images.pooled, vectors, ids, real, 0.07)
        assert float(terms[name].detach()) == pytest.approx(float(theirs.detach()), abs=1e-9)


def test_one_co_attention_and_one_joint_encoder_are_used_twice():
    system, calls = shaken(build("ege_cmp")), {"co_attention": [], "joint": []}
    for name, where in calls.items():
        getattr(system, name).register_forward_hook(lambda _, inputs, __, where=where: where.append(inputs))
    rows = batch()
    encoded = system.encode(rows, PROGRESS)
    title, picture, words = system.together(encoded["images"], encoded["texts"])
    assert [(x[0].shape[1], x[2].shape[1]) for x in calls["co_attention"]] == [(10, 7), (17, 10)]  # (t, e), then (v, t)
    assert [x[0].shape[1] for x in calls["joint"]] == [10 + 17, 7 + 10]  # [title; picture], [entities; title]
    assert (title.shape, picture.shape, words.shape) == ((6, 10, 16), (6, 17, 16), (6, 7, 16))
    capture = shaken(build("ege_cmp", entities=False))
    terms = capture(example(), PROGRESS).terms
    assert set(terms) == {"contrast", "masked_words", "masked_regions"}


@pytest.mark.parametrize("split", ["446", "066", "222", "255", "552", "525", "606", "660", "888"])
def test_published_splits(split):
    system = build("ege_cmp", split=split)
    separate, co, joint = {"552": (5, 4, 2)}.get(split, tuple(map(int, split)))
    if split == "606":
        co = 1
    layers = system.encoders.image.stack.blocks, system.encoders.text.stack.blocks
    assert [len(x) for x in layers] == [separate] * 2
    assert (len(system.co_attention.first), len(system.joint.blocks)) == ({"606": 1}.get(split, co), joint)
    assert torch.isfinite(system(batch(), PROGRESS).total)


def test_a_padded_slot_says_nothing():
    """Card, check 9: more padding, of title and entities, changes no loss."""
    system, rows = with_graph(), batch()
    padded = torch.nn.functional.pad(rows.texts.ids, (0, 5))
    wider = replace(rows, texts=replace(rows.texts, ids=padded, mask=padded != 0))
    one, other = (system(x, PROGRESS).terms for x in (rows, wider))
    for name in one:
        torch.testing.assert_close(one[name], other[name], msg=name)


def test_hidden_words_and_regions():
    system, rows = build("ege_cmp", mask_share=0.5), batch()
    title, entities, labels, further = system.hidden_words(rows, PROGRESS)
    for texts, told, whole in (
        (title, labels, rows.texts),
        (entities.texts, further, system.entities_of(rows.texts).texts),
    ):
        hidden = told != -100
        assert bool(hidden.any())
        assert torch.equal(texts.ids[~hidden], whole.ids[~hidden])
        assert torch.equal(told[hidden], whole.ids[hidden])
        assert not bool(hidden[(whole.ids == VOCABULARY.cls) | (whole.ids == VOCABULARY.sep) | ~whole.mask].any())
    zeros, told = (system.hidden_regions(rows, PROGRESS, told=told) for told in (False, True))
    assert bool((told | ~zeros).all())  # what is zero is told
    many = build("ege_cmp", mask_share=0.5)
    steps = [Progress(step, 1, 400, 6) for step in range(300)]
    counts = [[many.hidden_regions(rows, p, told=t).sum() for t in (False, True)] for p in steps]
    zero, asked = (float(sum(column)) for column in zip(*counts, strict=True))
    assert asked / (300 * 6 * 16) == pytest.approx(0.5, abs=0.02)
    assert zero / asked == pytest.approx(0.9, abs=0.02)
    # hidden patches are not seen: their pixels change nothing, others do
    clean, spoilt = rows.images.pixels, rows.images.pixels.clone()
    place = torch.nonzero(zeros[0])[0, 0]
    spoilt[0, :, 8 * (place // 4) : 8 * (place // 4) + 8, 8 * (place % 4) : 8 * (place % 4) + 8] = 255
    one, other = (system.see(Images(pixels), zeros).states["last"] for pixels in (clean, spoilt))
    torch.testing.assert_close(one, other)
    assert not torch.allclose(system.see(Images(clean)).states["last"], system.see(Images(spoilt)).states["last"])


def test_regions_of_a_detector():
    config = replace(systems.find("ege_cmp").Config.sized("tiny"), regions="features", feature_width=5)
    system = systems.find("ege_cmp")(config, VOCABULARY)
    generator = torch.Generator().manual_seed(1)
    features, boxes = (torch.rand(6, 4, n, generator=generator) for n in (5, 4))
    mask = torch.tensor([[True] * 4] * 5 + [[True, True, False, False]])
    rows = replace(batch(), images=Images(features=features, boxes=boxes, feature_mask=mask))
    losses = system(rows, PROGRESS)
    assert torch.isfinite(losses.total)
    hidden = system.hidden_regions(rows, Progress(0, 1, 9, 6), told=True)
    assert not bool((hidden & ~mask).any())
    assert systems.find("ege_cmp").reads(config).features
    losses.total.backward()
    assert system.encoders.image.place.weight.grad.abs().sum() > 0


def test_memory_goes_through_a_checkpoint_and_the_graph_is_a_function_of_it():
    system = with_graph()
    other = build("ege_cmp").double()
    other.load_state_dict(system.state_dict())
    other.remember({name: tensor.clone() for name, tensor in system.memory().items()})
    one, two = (x.train()(batch(), PROGRESS).total for x in (system, other))
    assert torch.equal(one, two)
    assert not [name for name in system.state_dict() if "nodes" in name]  # no weight of a run


def test_graphs_by_lexicon_at_random_and_none():
    maker = LexiconMaker()
    for name in "abcdef":
        maker.name(name, name, "en")
    for head, tail in ("ae", "be", "cf", "df"):
        maker.edge(head, "is a", tail)
    lexicon = maker.lexicon("made")
    vocabulary = replace(VOCABULARY, lexicon=lexicon)
    system = build("ege_cmp", vocabulary=vocabulary, graph="lexicon")
    system.end_epoch(PROGRESS)
    likeness = system.nodes.graph.between(torch.arange(6))
    rows = {name: row for row, name in enumerate(lexicon.ids)}
    assert [float(likeness[rows[a], rows[b]]) for a, b in ("ab", "ad", "cb", "cd")] == [1, 0, 0, 1]
    with pytest.raises(UserError, match="the tokenizer has none"):
        build("ege_cmp", graph="lexicon")
    learnt, drawn = with_graph(), with_graph(graph="random")
    ids = torch.arange(100, 106)
    assert not torch.equal(learnt.nodes.graph.between(ids), drawn.nodes.graph.between(ids))
    assert torch.equal(drawn.nodes.graph.between(ids), with_graph(graph="random").nodes.graph.between(ids))
    assert "nodes" not in with_graph(graph="none")(batch(), PROGRESS).terms


def test_retrieval_hides_nothing():
    system, rows = shaken(build("ege_cmp")).eval(), batch()
    encoded = {"images": system.encode_images(rows.images), "texts": system.encode_texts(rows.texts)}
    assert set(system.retrieval(encoded, rows, PROGRESS).terms) == {"contrast", "entity_contrast"}


ARMS = [{}, {"model.entities": False}, {"tokenizer.lexicon": "scenes", "model.graph": "lexicon"}]
SCENES = "scenes:side=32,things=12,objects=2,whole=true,count=1500"


@pytest.mark.slow
@pytest.mark.parametrize("changes", ARMS, ids=str)
def test_learns_scenes(changes, tmp_path):
    """Two minutes in all on a free core: 150 steps of 64 pairs each. Chance is a mean recall of about 9.5."""
    settings = {"train.batch_size": 64, "train.steps": 150, "train.lr": 3e-3, "train.threads": 1}
    settings |= {"train.warmup": 0.1, "data.augment": "none", "data.workers": 0}
    config = RunConfig.of("ege_cmp", "tiny", SCENES, changes={**settings, **changes})
    model = tuwen.load(loop.train(config, tmp_path / "run", quiet=True))
    measured = retrieve(model.predictor, open_corpus(SCENES, "val"), limit=100).json["languages"]
    for language in ("en", "zh"):
        stages = measured[language]
        assert stages["first"]["mean_recall"] > 3.5 * stages["chance"]["mean_recall"], language
