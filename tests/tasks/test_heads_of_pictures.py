"""What is learnt of pictures for a task: classes, boxes, pairs, captions, retrieval; by hand, learnt and used."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.systems.common import PROGRESS, build, example, shaken
from tests.systems.test_survey import spanned
from tests.tasks.stub import Pairs
from tuwen import systems, tasks
from tuwen.data.batch import Images
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.corpus import Caption, all_texts, text_id
from tuwen.data.judged import JudgedPairs
from tuwen.data.subset import Marked
from tuwen.errors import UserError
from tuwen.nn.boxes import centred
from tuwen.nn.generation import Generation
from tuwen.objectives.boxes import nearest_box_loss
from tuwen.tasks.captioning import CaptionHead, Captioning, CaptioningConfig, say, word_vectors
from tuwen.tasks.classification import Classification, ClassificationConfig, PictureClassifier
from tuwen.tasks.encoding import picture_features
from tuwen.tasks.matching import MatchingHead
from tuwen.tasks.ranking import RetrievalHead
from tuwen.tasks.referring import BoxHead, Referring, middle, picture_tokens

RANKING = [name for name in systems.names() if tasks.can(systems.find(name), tasks.find_task("retrieval"))]


def with_columns(batch, **columns):
    return replace(batch, columns=columns)


# ---- rows


def test_rows_of_classes_are_numbered_by_how_often_training_shows_them():
    columns = [{"cls": name} for name in ("cat", "dog", "dog", None, "ant")]
    corpus = Pairs([{"en": [f"x {k}"]} for k in range(5)], columns=columns)
    config = Classification().prepare(corpus)
    assert config.classes == ("dog", "ant", "cat")
    rows = Classification(config).rows(corpus, "train")
    assert [rows.record(k).columns["label"] for k in range(len(rows))] == [2, 0, 0, 1]
    other = Pairs([{"en": ["x 1"]}] * 2, columns=[{"cls": "bee"}, {"cls": "cat"}])
    seen = Classification(config).rows(other, "test")
    assert [seen.record(k).columns["label"] for k in range(2)] == [-1, 2]
    with pytest.raises(UserError, match="1 classes in its column"):
        Classification().prepare(Pairs([{"en": ["x 1"]}], columns=[{"cls": "cat"}]))


def test_a_marked_corpus_is_known_by_what_it_holds():
    base = Pairs([{"en": [f"x {k}"]} for k in range(4)])
    one, same, other = (Marked(base, [2, 0], "label", values) for values in ([1, 0], [1, 0], [1, 1]))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert one.fingerprint != Marked(base, [2, 0], "mark", [1, 0]).fingerprint
    assert (one.record(0).texts, one.record(0).columns) == ({"en": ["x 2"]}, {"label": 1})
    assert torch.equal(one.image(0), base.image(2))


def test_wrong_texts_are_wrong():
    """Of scenes by what is drawn; of other corpora by the pictures a text was written for."""
    scenes = Scenes(count=60, side=32)
    pairs = JudgedPairs(scenes)
    assert len(pairs) == len(JudgedPairs(scenes)) > 200
    assert pairs.fingerprint == JudgedPairs(scenes).fingerprint != JudgedPairs(scenes, seed=1).fingerprint
    labels = [pairs.record(k).columns["label"] for k in range(len(pairs))]
    assert labels == [1, 0] * (len(pairs) // 2)
    for k in range(0, len(pairs), 7):
        row, language, text, label = pairs.pairs[k]
        own = list(scenes.record(row).texts[language])
        assert (text in own) == bool(label)
        at = next(
            (other, place)
            for other in range(60)
            for place, said in enumerate(all_texts(scenes.record(other)))
            if said == text
        )
        caption = Caption(text, language, text_id(text), *at)
        assert len(scenes.relevance([row], [caption]).images) == label
    shared = Pairs([{"en": ["a 1"]}, {"en": ["a 1"]}, {"en": ["b 2"]}])
    texts = {pair for pair in JudgedPairs(shared).pairs if pair[3] == 0}
    assert texts == {(0, "en", "b 2", 0), (1, "en", "b 2", 0), (2, "en", "a 1", 0)}
    with pytest.raises(UserError, match="no picture has a right and a wrong text"):
        JudgedPairs(Pairs([{"en": ["a 1"]}, {"en": ["a 1"]}]))


def test_phrases_bring_every_right_box():
    objects = [{"phrase": "a 1", "box": [0, 0, 0.5, 0.5]}, {"phrase": "a 1", "box": [0.5, 0, 1, 1]}]
    corpus = Pairs([{"en": ["x 1"]}], columns=[{"objects": objects}])
    rows = Referring().rows(corpus, "train")
    target = rows.record(0).columns["target"]
    assert rows.record(0).texts == {"en": ["a 1"]}
    assert target.shape == (32, 4)
    assert np.unique(target, axis=0).tolist() == [[0, 0, 0.5, 0.5], [0.5, 0, 1, 1]]


# ---- losses


def test_the_loss_of_a_box_by_hand():
    """Row 0 is right; row 1's nearer box is as large and half beside it: |d| = 0.25, GIoU = 1/3 - 0."""
    right = torch.tensor([[[0.0, 0.0, 0.5, 0.5]] * 2, [[0.25, 0.0, 0.75, 1.0], [0.0, 0.0, 1.0, 1.0]]])
    boxes = centred(torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 1.0]]))
    first = 5 * 0.25 + 2 * (1 - 1 / 3)
    second = 5 * (0.25 + 0.5) + 2 * (1 - 0.5)  # of the whole picture: half covered, middle and width differ
    assert float(nearest_box_loss(boxes, right)) == pytest.approx(min(first, second) / 2, rel=1e-5)
    moved = boxes.clone().requires_grad_()
    nearest_box_loss(moved, right).backward()
    assert float(moved.grad[1, 0]) < 0  # further right is nearer


def test_the_middle_of_shares():
    shares = torch.zeros(2, 16)
    shares[0, 6], shares[1, 0], shares[1, 3] = 1.0, 0.5, 0.5
    assert middle(shares).tolist() == [[2.5 / 4, 1.5 / 4], [0.5, 0.5 / 4]]


@pytest.mark.parametrize(
    "name", [name for name in systems.names() if "referring" in tasks.of_system(systems.find(name))]
)
def test_boxes_are_boxes_and_learn(name):
    system, batch = build(name).eval(), spanned()
    head = BoxHead(system)
    targets = torch.tensor([[[0.0, 0.0, 0.4, 0.4]], [[0.5, 0.5, 1.0, 1.0]]] * 3)
    batch = with_columns(batch, target=targets)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-2)
    losses = []
    for _ in range(25):
        loss = head.losses(system, batch, PROGRESS).terms["boxes"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    with torch.no_grad():
        boxes = head.boxes(system, system.encode_images(batch.images), system.encode_texts(batch.texts))
    assert ((boxes > 0) & (boxes < 1)).all()
    assert math.isqrt(picture_tokens(system.encode_images(batch.images)).shape[1]) ** 2 == 16


def test_classes_by_hand():
    """Cross entropy of a linear layer on the tower's features; a picture of an unknown class teaches nothing."""
    system, batch = shaken(build("clip")).eval(), example()
    head = PictureClassifier(system, 3).double()
    labels = torch.tensor([0, 2, 1, -1, 2, 0])
    losses = head.losses(system, with_columns(batch, label=labels), PROGRESS)
    logits = picture_features(system, batch.images) @ head.layer.weight.T + head.layer.bias
    known = labels >= 0
    expected = -logits.log_softmax(1)[known].gather(1, labels[known][:, None]).mean()
    torch.testing.assert_close(losses.terms["classes"], expected.float(), rtol=1e-5, atol=1e-6)
    assert head.layer.weight.shape == (3, system.config.image.width)


@pytest.mark.parametrize("name", ["r2d2", "albef", "clip"])
def test_pairs_are_taught_to_every_head(name):
    """R2D2 has two matching heads: the mean of both cross entropies; clip has a bias on the cosine's logit."""
    system, batch = shaken(build(name)).eval(), example()
    head = MatchingHead(system).double()
    labels = torch.tensor([1, 0, 1, 0, 0, 1])
    loss = head.losses(system, with_columns(batch, label=labels), PROGRESS).terms["matching"]
    images, texts = system.encode_images(batch.images), system.encode_texts(batch.texts)
    if name == "clip":
        cosine = (images.pooled * texts.pooled).sum(1)
        odds = (cosine * system.log_scale.exp())[:, None]
    else:
        odds = system.match(images, texts)
        assert odds.shape == (6, 2 if name == "r2d2" else 1)
    by_hand = [
        F.softplus(-odds[row, k] if labels[row] else odds[row, k]) for row in range(6) for k in range(odds.shape[1])
    ]
    torch.testing.assert_close(float(loss.detach()), float(sum(by_hand).detach() / len(by_hand)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", RANKING)
def test_fine_tuning_for_retrieval_is_what_ranks(name):
    """No masked word or patch is told; what is learnt is contrast and matching, and a step of it can be taken."""
    system, batch = build(name).train(), spanned()
    head = RetrievalHead(system)
    head.before_step(system, PROGRESS)
    losses = head.losses(system, batch, PROGRESS)
    assert not any("masked" in term or "caption" in term or "guided" in term for term in losses.terms)
    losses.total.backward()
    reached = {parameter for parameter, p in system.named_parameters() if p.grad is not None}
    assert any(parameter.startswith("encoders.image") for parameter in reached)
    assert any(parameter.startswith("encoders.text") for parameter in reached)
    head.after_step(system, {key: value.detach() for key, value in losses.keep.items()}, PROGRESS)


@pytest.mark.parametrize("name", ["albef", "bridgetower"])
def test_fine_tuning_for_retrieval_is_pre_training_without_its_words(name):
    """The very same terms, where nothing is hidden in what they read."""
    system, batch = shaken(build(name)).eval(), example()
    with torch.no_grad():
        whole = system.losses(system.encode(batch, PROGRESS), batch, PROGRESS)
        tuned = RetrievalHead(system).losses(system, batch, PROGRESS)
    assert set(whole.terms) - set(tuned.terms) == {"masked_words"}
    for term, value in tuned.terms.items():
        torch.testing.assert_close(value, whole.terms[term], rtol=0, atol=0)
    assert whole.keep.keys() == tuned.keep.keys()


# ---- captions


def test_captions_of_a_head_by_hand():
    """-log p of each word and the end, given those before, without smoothing; the tower's words are the decoder's."""
    system, batch = shaken(build("albef")).eval(), example()
    head = CaptionHead(system, CaptioningConfig(layers=2, smoothing=0.0)).double().eval()
    with torch.no_grad():
        for k, parameter in enumerate(head.parameters()):
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(k)))
        loss = head.losses(system, batch, PROGRESS).terms["captions"]
        states, words, total, count = system.encoders.image.tokens(batch.images), word_vectors(system), 0.0, 0
        for row in range(6):
            length = int(batch.texts.mask[row].sum())
            for place in range(1, length):
                before = batch.texts.ids[row : row + 1, :place]
                seen = head.decoder(before, batch.texts.language[row : row + 1], states[row : row + 1], None, words)
                logits = head.decoder.logits(seen[0, -1], words)
                total, count = total - float(logits.log_softmax(0)[batch.texts.ids[row, place]]), count + 1
    assert float(loss) == pytest.approx(total / count, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_system_with_a_decoder_is_taught_by_its_likelihood_and_its_paper_s_smoothing(smoothing):
    """(1 - s) of -log p of each word and s of the mean over all words, over the words and ends (ERNIE-UniX2's card)."""
    system, batch = shaken(build("ernie_unix2", label_smoothing=smoothing)).eval(), example()
    head = CaptionHead(system, CaptioningConfig())
    assert not list(head.parameters())
    with torch.no_grad():
        loss = head.losses(system, batch, PROGRESS).terms["captions"]
        images, words = system.encode_images(batch.images), system.encoders.text.words.weight
        states, following = system.decoder.taught(batch.texts, *system.context(images, None), words)
        log_p = system.decoder.logits(states, words).float().log_softmax(1)
        even = float(log_p.mean(1).sum())
        own = float(system.likelihood(images, None, batch.texts).sum())
    assert float(loss) == pytest.approx(-((1 - smoothing) * own + smoothing * even) / len(following), rel=1e-5)


def test_a_head_learns_captions_by_heart_and_says_them():
    torch.manual_seed(0)
    system, batch = build("clip").train(), example([0, 1, 4])
    head = CaptionHead(system, CaptioningConfig(layers=2, smoothing=0.0))
    with torch.no_grad():
        head.decoder.tags.weight.normal_(0, 0.02)
    optimizer = torch.optim.Adam([*system.parameters(), *head.parameters()], lr=3e-3)
    for _ in range(150):
        loss = head.losses(system, batch, PROGRESS).terms["captions"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    system.eval()
    head.eval()
    keys = torch.arange(3)
    for how in (Generation("greedy"), Generation(beams=3)):
        made = say(system, head, Images(batch.images.pixels), torch.zeros(3, dtype=torch.int64), how, keys)
        for row in range(3):
            own = batch.texts.ids[row][batch.texts.mask[row]]
            assert made.ids[row][made.mask[row]].tolist() == own.tolist()


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="out of range"):
        CaptioningConfig(layers=0)
    assert Captioning().config.layers == 4
    assert isinstance(Classification().config, ClassificationConfig)
