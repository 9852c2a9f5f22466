"""ERNIE-UniX2: every stream's losses against slow versions, and the card's checks (section 11)."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from tests.systems.common import (
    PROGRESS,
    VOCABULARY,
    assert_same_gradients,
    build,
    example,
    gradients,
    shaken,
)
from tuwen.data.batch import Batch, Texts
from tuwen.errors import UserError
from tuwen.nn.generation import Generation
from tuwen.objectives.gather import global_contrast
from tuwen.systems.ernie_unix2 import ERNIEUniX2, Streams, identity
from tuwen.systems.system import Progress

ONLY = {name: Streams(**({"texts": 0, "parallel": 0, "pairs": 0, "both": 0} | {name: 1})) for name in vars(Streams())}
OTHER = [
    [2, 31, 12, 33, 14, 3],
    [2, 27, 28, 29, 3],
    [2, 15, 11, 32, 3],
    [2, 27, 28, 3],
    [2, 38, 19, 3],
    [2, 36, 37, 35, 34, 33, 32, 31, 30, 3],
]


def padded(rows: list[list[int]], language: int, extra: int = 0) -> Texts:
    longest = max(map(len, rows)) + extra
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return Texts(ids, ids != 0, torch.full((len(rows),), language))


def bilingual(rows: list[int] | None = None, extra: int = 0) -> Batch:
    rows = list(range(len(OTHER))) if rows is None else rows
    return dataclasses.replace(example(rows), columns={"parallel": padded([OTHER[k] for k in rows], 1, extra)})


def model(stream: str | None = None, **changes) -> ERNIEUniX2:
    if stream is not None:
        changes["streams"] = ONLY[stream]
    return shaken(build("ernie_unix2", languages=3, **changes)).eval()


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum().sqrt()


# ---- slow versions, a row and a word at a time


def pooled(system, batch: Batch, texts: Texts, row: int) -> Tensor:
    count = int(texts.mask[row].sum())
    states = system.encoders.text(texts.ids[row : row + 1, :count], texts.mask[row : row + 1, :count])
    return unit(system.encoders.text_projection(states[0, 0]))


def seen(system, batch: Batch, row: int) -> Tensor:
    tokens = system.encoders.image(batch.images.pixels[row : row + 1])
    return unit(system.encoders.image_projection(system.encoders.image.pool(tokens)[0]))


def contrast(rows: list[Tensor], columns: list[Tensor], same: list[list[bool]], temperature: Tensor) -> Tensor:
    """Half the sum of both directions, every right pair a positive."""
    total = torch.zeros((), dtype=torch.float64)
    for queries, keys in ((rows, columns), (columns, rows)):
        for i, query in enumerate(queries):
            scores = torch.stack([(query * key).sum() / temperature for key in keys])
            log_p = scores - scores.exp().sum().log()
            right = [j for j in range(len(keys)) if same[i][j]]
            total = total - sum(log_p[j] for j in right) / len(right) / len(queries) / 2
    return total


def slow_told(system, batch: Batch, texts: Texts, source: Texts | None, picture: bool) -> Tensor:
    """Label-smoothed loss of every word, one row at a time without padding."""
    words, losses = system.encoders.text.words.weight, []
    for row in range(len(batch)):
        parts = []
        if picture:
            parts.append(
                system.image_to_fusion(system.encoders.image(batch.images.pixels[row : row + 1])) + system.types[0]
            )
        if source is not None:
            kept = source.ids[row : row + 1, : int(source.mask[row].sum())]
            parts.append(system.encoders.text(kept, kept != 0) + system.types[1])
        memory = system.fusion(torch.cat(parts, 1))
        told = texts.ids[row][texts.mask[row]]
        for place in range(1, len(told)):
            states = system.decoder(told[None, :place], texts.language[row : row + 1], memory, None, words)
            scores = words @ states[0, -1] + system.decoder.bias
            log_p = scores - scores.exp().sum().log()
            smoothing = system.config.label_smoothing
            losses.append(-(1 - smoothing) * log_p[told[place]] - smoothing * log_p.mean())
    return torch.stack(losses).mean()


def same_of(batch: Batch, parallel: bool) -> list[list[bool]]:
    n = range(len(batch))
    return [
        [
            bool(batch.image_id[i] == batch.image_id[j] or batch.text_id[i] == batch.text_id[j])
            or (parallel and OTHER[i] == OTHER[j])
            for j in n
        ]
        for i in n
    ]


@pytest.mark.parametrize("ambiguous", [False, True])
def test_pictures_with_two_languages(ambiguous):
    system, batch = model("both"), bilingual()
    source = batch.texts
    if ambiguous:
        source = padded([row[:1] + row[-2:] for row in OTHER], 0, 2)
        batch = dataclasses.replace(batch, columns=dict(batch.columns) | {"ambiguous": source})
    losses, other = system(batch, PROGRESS), batch.columns["parallel"]
    rows = range(len(batch))
    pictures = [seen(system, batch, k) for k in rows]
    first, second = ([pooled(system, batch, texts, k) for k in rows] for texts in (batch.texts, other))
    image_same = [[bool(batch.image_id[i] == batch.image_id[j]) or OTHER[i] == OTHER[j] for j in rows] for i in rows]
    want = {
        "image_text_contrast": (
            contrast(pictures, first, same_of(batch, False), system.temperature)
            + contrast(pictures, second, image_same, system.temperature)
        )
        / 2,
        "text_text_contrast": contrast(first, second, same_of(batch, True), system.temperature),
        "translation_with_picture": slow_told(system, batch, other, source, True),
    }
    assert losses.terms.keys() == want.keys()
    for name, term in want.items():
        torch.testing.assert_close(losses.terms[name], term, rtol=0, atol=1e-9)
    assert_same_gradients(gradients(losses.total.double(), system), gradients(sum(want.values()), system))


def test_captions_and_translation_without_a_picture():
    system, batch = model("pairs"), bilingual()
    want = slow_told(system, batch, batch.texts, None, True)
    torch.testing.assert_close(system(batch, PROGRESS).terms["captions"], want, rtol=0, atol=1e-9)
    system = model("parallel")
    want = slow_told(system, batch, batch.columns["parallel"], batch.texts, False)
    torch.testing.assert_close(system(batch, PROGRESS).terms["translation"], want, rtol=0, atol=1e-9)


def masked_of(system, texts: Texts, batch: Batch, purpose: str) -> tuple[list[list[int]], list[dict[int, int]]]:
    """Which ids stand there and what is to be told, from the draws, one word at a time."""
    drawn = PROGRESS.uniform(batch, 3 * texts.ids.shape[1], purpose).view(len(batch), -1, 3).tolist()
    hidden, told = [], []
    for row in range(len(batch)):
        ids, labels = texts.ids[row].tolist(), {}
        content = [k for k, i in enumerate(ids) if i not in (0, 2, 3)]
        least = min(content, key=lambda k: drawn[row][k][0])
        for k in content:
            if drawn[row][k][0] < system.config.mask_share or k == least:
                labels[k] = ids[k]
                what, which = drawn[row][k][1:]
                ids[k] = VOCABULARY.mask if what < 0.8 else int(which * VOCABULARY.size) if what < 0.9 else ids[k]
        hidden.append(ids)
        told.append(labels)
    return hidden, told


def test_masked_words_and_masked_pairs():
    batch = bilingual()
    system = model("texts")
    hidden, told = masked_of(system, batch.texts, batch, "mask")
    losses = []
    for ids, labels in zip(hidden, told, strict=True):
        kept = torch.tensor([[i for i in ids if i != 0]])
        states = system.encoders.text(kept, kept != 0)[0]
        losses += [word_loss(system, states[k], word) for k, word in labels.items()]
    found = system(batch, PROGRESS)
    assert found.terms.keys() == {"masked_words"}
    torch.testing.assert_close(found.total.double(), torch.stack(losses).mean(), rtol=0, atol=1e-6)

    system = model("parallel")
    other_hidden, other_told = masked_of(system, batch.columns["parallel"], batch, "mask parallel")
    losses = []
    for a, b, labels, others in zip(hidden, other_hidden, told, other_told, strict=True):
        a, b = [i for i in a if i != 0], [3, *(i for i in b[1:] if i != 0)]
        assert labels
        assert others  # check 6: both sides
        places = torch.tensor([*range(len(a)), *range(len(b))])
        states = system.encoders.text(
            torch.tensor([a + b]), torch.ones(1, len(a + b), dtype=torch.bool), places=places
        )[0]
        losses += [word_loss(system, states[k], word) for k, word in labels.items()]
        losses += [word_loss(system, states[len(a) + k], word) for k, word in others.items()]
    want = torch.stack(losses).mean()
    torch.testing.assert_close(system(batch, PROGRESS).terms["masked_pairs"], want, rtol=0, atol=1e-9)


def word_loss(system, state: Tensor, word: int) -> Tensor:
    scores = system.word_head(state[None], system.encoders.text.words.weight)[0]
    return scores.exp().sum().log() - scores[word]


def test_the_decoder_may_restore_what_was_masked():
    system, batch = model("texts", masked="decoder"), bilingual()
    masked, _ = system.hide(batch.texts, batch, PROGRESS, "mask")
    want = slow_told(system, batch, batch.texts, masked, False)
    torch.testing.assert_close(system(batch, PROGRESS).terms["masked_words"], want, rtol=0, atol=1e-9)


def test_masked_captions_look_at_the_picture():
    system, batch = model("pairs", masked_captions=True), bilingual()
    before = system(batch, PROGRESS).terms["masked_captions"].detach()
    black = dataclasses.replace(batch, images=dataclasses.replace(batch.images, pixels=batch.images.pixels * 0))
    assert abs(float(before - system(black, PROGRESS).terms["masked_captions"].detach())) > 1e-6


# ---- card, section 11


def test_at_the_start_losses_are_those_of_chance():
    """Check 2."""
    for stream, wanted in {
        "pairs": {"image_text_contrast": 6, "captions": VOCABULARY.size},
        "parallel": {"text_text_contrast": 6, "masked_pairs": VOCABULARY.size, "translation": VOCABULARY.size},
    }.items():
        system = build("ernie_unix2", streams=ONLY[stream]).double()
        with torch.no_grad():
            system.temperature.fill_(0.5)  # untrained towers of width 32 lie further apart than large ones
        batch = bilingual()
        ids = torch.arange(6)
        batch = dataclasses.replace(batch, image_id=ids, text_id=ids)
        terms = system(batch, PROGRESS).terms
        for name, size in wanted.items():
            assert float(terms[name].detach()) == pytest.approx(math.log(size), abs=0.7), name


def test_a_text_beside_itself_has_the_greatest_score():
    """Check 2: for TTC(w, w) every diagonal logit is 1/tau and the row's maximum."""
    system, batch = model("parallel"), bilingual()
    vectors = system.encode_texts(batch.texts).pooled
    logits = vectors @ vectors.T / system.temperature
    torch.testing.assert_close(logits.diagonal(), (1 / system.temperature).expand(6), rtol=1e-12, atol=0)
    assert (logits.amax(1) <= logits.diagonal() + 1e-9).all()


def test_contrasts_are_symmetric():
    """Check 3."""
    system, batch = model("both"), bilingual()
    other = batch.columns["parallel"]
    images, texts, parallel = (
        system.encode_images(batch.images),
        system.encode_texts(batch.texts),
        system.encode_texts(other),
    )
    swapped = dataclasses.replace(batch, text_id=identity(other))
    one = system.text_text(texts, parallel, batch, identity(other))
    two = system.text_text(parallel, texts, swapped, batch.text_id)
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
    one = global_contrast(images.pooled, texts.pooled, batch.same(), system.temperature)
    two = global_contrast(texts.pooled, images.pooled, batch.same(), system.temperature)
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_identity_is_what_the_tokens_say_whatever_the_padding():
    a, b = padded(OTHER, 1), padded([*OTHER[:3], OTHER[0], *OTHER[4:]], 1, 5)
    assert (identity(a) == identity(b)).tolist() == [True, True, True, False, True, True]
    assert int(identity(b)[3]) == int(identity(a)[0])
    assert int(identity(padded([[2, 5, 6, 3]], 0))) != int(identity(padded([[2, 6, 5, 3]], 0)))


def test_the_tag_of_another_language_gives_other_words():
    """Check 4; the swap of tags is `tests/nn/test_decoder.py`'s."""
    system, batch = model(), bilingual()
    memory = system.context(system.encode_images(batch.images), None)
    first, second = (dataclasses.replace(batch.texts, language=torch.full((6,), k)) for k in (0, 1))
    words = system.encoders.text.words.weight
    assert (system.decoder.likelihood(first, *memory, words) != system.decoder.likelihood(second, *memory, words)).all()


def test_pictures_that_are_masked_out_leave_the_translation_of_the_text_alone():
    """Check 5."""
    system, batch = model(), bilingual()
    images, texts = system.encode_images(batch.images), system.encode_texts(batch.texts)
    states, mask = system.context(images, texts)
    count = images.states["last"].shape[1]
    hidden = torch.cat([torch.zeros(6, count, dtype=torch.bool), texts.state_mask], 1)
    parts = [system.image_to_fusion(images.states["last"]) + system.types[0], texts.states["last"] + system.types[1]]
    without = system.fusion(torch.cat(parts, 1), hidden)
    words, other = system.encoders.text.words.weight, batch.columns["parallel"]
    alone = system.decoder.likelihood(other, *system.context(None, texts), words)
    torch.testing.assert_close(system.decoder.likelihood(other, without, hidden, words), alone, rtol=0, atol=1e-6)
    assert ((system.decoder.likelihood(other, states, mask, words) - alone).abs() > 1e-6).all()


def test_causality_over_the_whole_system():
    """Check 1: the picture and the source change every word's probability."""
    system, batch = model(), bilingual()
    words, other = system.encoders.text.words.weight, batch.columns["parallel"]

    def states(images, prompt):
        memory = system.context(system.encode_images(images), system.encode_texts(prompt))
        return system.decoder(other.ids[:, :-1], other.language, *memory, words)

    before = states(batch.images, batch.texts)
    pixels = dataclasses.replace(batch.images, pixels=255 - batch.images.pixels)
    source = dataclasses.replace(
        batch.texts, ids=torch.where(batch.texts.ids > 4, 44 - batch.texts.ids, batch.texts.ids)
    )
    for after in (states(pixels, batch.texts), states(batch.images, source)):
        assert ((after - before).abs().amax(-1) > 1e-7)[:, 0].all()
        assert ((after - before).abs().amax(-1) > 1e-7).all()


def test_padding_and_rows_beside_change_nothing():
    """Check 7."""
    system, batch, longer = model(), bilingual(), bilingual(extra=4)
    images = system.encode_images(batch.images)
    together = system.likelihood(images, batch.texts, batch.columns["parallel"])
    torch.testing.assert_close(
        system.likelihood(images, batch.texts, longer.columns["parallel"]), together, rtol=0, atol=1e-5
    )
    for row in range(6):
        alone = bilingual([row])
        found = system.likelihood(system.encode_images(alone.images), alone.texts, alone.columns["parallel"])
        torch.testing.assert_close(found, together[row : row + 1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("stream", "untouched"),
    [
        ("texts", ("encoders.image", "decoder", "fusion", "image_to_fusion", "encoders.text_projection")),
        ("parallel", ("encoders.image", "image_to_fusion", "encoders.image_projection")),
        ("pairs", ("word_head",)),
        ("both", ("word_head",)),
    ],
)
def test_a_stream_touches_only_its_parts(stream, untouched):
    """Check 10."""
    system = model(stream)
    found = gradients(system(bilingual(), PROGRESS).total, system)
    for name, gradient in found.items():
        if name.startswith(tuple(f"{part}." for part in untouched)):
            assert gradient is None, name
    touched = {name.split(".")[0] for name, gradient in found.items() if gradient is not None}
    assert "encoders" in touched
    assert ("decoder" in touched) == (stream != "texts")


def test_beams():
    """Check 11 on the whole system: one beam is greedy, five never score below it."""
    system, batch = model(), bilingual()
    images, language = system.encode_images(batch.images), torch.ones(6, dtype=torch.int64)
    greedy, one, five = (
        system.generate(images, batch.texts, language, Generation(method, beams))
        for method, beams in (("greedy", 5), ("beam", 1), ("beam", 5))
    )
    assert torch.equal(greedy.ids, one.ids)
    assert (five.score >= greedy.score).all()


# ---- streams


@torch.no_grad()
def test_heads_are_one_for_every_language():
    """Check 9, what needs no download: 1,842 answers, and a question's language moves none of them.

    Counts of xGQA, XVNLI and Multi30k are of their files, which stand in no fixture.
    """
    system, batch = model(), bilingual()
    images = system.encode_images(batch.images)
    english = dataclasses.replace(batch.texts, language=torch.zeros(6, dtype=torch.int64))
    chinese = dataclasses.replace(batch.texts, language=torch.ones(6, dtype=torch.int64))
    first, second = (system.fuse([images], system.encode_texts(texts)).pooled for texts in (english, chinese))
    for task, classes in (("vqa", 1842), ("entailment", 3)):
        head = system.adapt(task, classes).double()
        assert head(first).shape == (6, classes)
        assert torch.equal(head(first), head(second))
    assert system.adapt("two_pictures") is None


def test_streams_are_drawn_by_the_step_with_their_weights():
    system, batch = model(), bilingual()
    drawn = [system.stream(batch, Progress(step, 1000, 4000, 6)) for step in range(4000)]
    share = {name: drawn.count(name) / 4000 for name in ("texts", "parallel", "pairs", "both")}
    assert share == pytest.approx({"texts": 0.1, "parallel": 0.3, "pairs": 0.3, "both": 0.3}, abs=0.03)
    assert drawn[:50] == [
        system.stream(part, Progress(step, 1000, 4000, 6)) for step in range(50) for part in batch.split(6)[:1]
    ]
    assert [system.stream(batch, Progress(step, 1000, 4000, 6, seed=1)) for step in range(50)] != drawn[:50]


def test_streams_that_the_corpus_cannot_fill_are_left_out():
    system, batch = model(), bilingual()
    one_language = dataclasses.replace(batch, columns={})
    assert {system.stream(one_language, Progress(s, 9, 9, 6)) for s in range(200)} == {"texts", "pairs"}
    no_pictures = dataclasses.replace(batch, images=None)
    assert {system.stream(no_pictures, Progress(s, 9, 9, 6)) for s in range(200)} == {"texts", "parallel"}
    with pytest.raises(UserError, match=r"streams texts, pairs alone; give one of them a weight"):
        model("both").stream(one_language, PROGRESS)


def test_parallel_texts_are_asked_for_where_a_stream_reads_them():
    config = model().config
    assert ERNIEUniX2.needs(config).languages == 2
    assert ERNIEUniX2.needs(dataclasses.replace(config, streams=ONLY["pairs"])).languages == 1


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="masked must be encoder or decoder"):
        dataclasses.replace(ERNIEUniX2.Config.sized("tiny"), masked="both")
    with pytest.raises(ValueError, match="streams must be weights"):
        Streams(0, 0, 0, 0)
