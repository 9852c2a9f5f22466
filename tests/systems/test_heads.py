"""ALBEF's and BLIP's own heads against an independent slow version of the card."""

import pytest
import torch
from torch import nn

from tests.systems.common import VOCABULARY, build, example, shaken
from tuwen.nn.initial import copy_students, initialise
from tuwen.systems.system import Progress
from tuwen.tasks.entailment import Entailment
from tuwen.tasks.heads import Classifier, head_of
from tuwen.tasks.two_pictures import TwoPictures
from tuwen.tasks.vqa import VQA

ANSWERS = torch.tensor([[2, 11, 3, 0], [2, 12, 13, 3], [2, 11, 14, 3]])


def ranker(name: str):
    """A system in float64 with its head for three answers of two and three words, as a run would start it."""
    system = build(name).double()
    task = VQA(VQA.Config("vqa", answers=("x", "y z", "x w")))
    head = head_of(system, task, 3, "target")
    head.tell_answers(ANSWERS, ANSWERS != 0)
    system.attach(head.double())
    shaken(system)
    head.begin(system)
    copy_students(system)
    return system.eval()


def spell(system, decoder, memory, mask, answer: list[int]) -> float:
    """log-likelihood of an answer, word by word from the beginning each time."""
    total = 0.0
    for place in range(1, len(answer)):
        logits = decoder(torch.tensor([answer[:place]]), memory, mask)[0, -1]
        total += float(logits.log_softmax(-1)[answer[place]])
    return total


@pytest.mark.parametrize("name", ["albef", "blip"])
@torch.no_grad()
def test_answers_are_ranked_by_their_likelihood(name):
    system, batch = ranker(name), example()
    images, texts = system.encode_images(batch.images), system.encode_texts(batch.texts)
    ranked = system.head.logits(system, [images], texts)
    fused = system.fuse([images], texts)
    for row in range(len(batch)):
        memory, mask = fused.states[row : row + 1], fused.mask[row : row + 1]
        for k, answer in enumerate(([2, 11, 3], [2, 12, 13, 3], [2, 11, 14, 3])):
            slow = spell(system, system.head.decoder, memory, mask, answer)
            assert float(ranked[row, k]) == pytest.approx(slow, abs=1e-5)


@torch.no_grad()
def test_only_the_answers_of_the_likeliest_first_words_are_said(monkeypatch):
    system, batch = ranker("albef"), example()
    images, texts = system.encode_images(batch.images), system.encode_texts(batch.texts)
    whole = system.head.logits(system, [images], texts)
    monkeypatch.setattr("tuwen.systems.heads.answering.FIRST", 1)
    one = system.head.logits(system, [images], texts)
    assert ((one > -1e3).sum(1) == 1).all()
    assert torch.equal(one[one > -1e3], whole[one > -1e3])


@pytest.mark.parametrize("step", [0, 3])
@torch.no_grad()
def test_the_loss_of_albef_s_answers_is_the_card_s(step):
    """Per-question weights, token-summed cross entropy, over B; alpha of it against the momentum decoder's words."""
    system, batch = ranker("albef"), example()
    generator = torch.Generator().manual_seed(1)
    for parameter in system.head.teacher.parameters():  # a teacher that has gone its own way
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    weights = torch.tensor([[0.7, 0.3, 0], [0, 1, 0], [0, 0, 0], [0.1, 0.2, 0.7], [0, 0, 1], [1, 0, 0]])
    batch = type(batch)(batch.images, batch.texts, batch.image_id, batch.text_id, batch.index, {"weight": weights})
    progress = Progress(step, 5, 10, 6)
    loss = system.head.losses(system, batch, progress).terms["answers"]

    images, texts, teacher = system.encode_images(batch.images), system.encode_texts(batch.texts), system.head.teacher
    student = system.fuse([images], texts)
    seen = teacher.encoders.encode_images(batch.images).states["last"]
    read = teacher.encoders.encode_texts(batch.texts.ids, batch.texts.mask).states["last"]
    taught = teacher.fusion(read, batch.texts.mask, seen, None)
    alpha, total = 0.4 * min(1, step / 5), 0.0
    for row in range(6):
        for k, answer in enumerate(([2, 11, 3], [2, 12, 13, 3], [2, 11, 14, 3])):
            ids, mask = torch.tensor([answer[:-1]]), batch.texts.mask[row : row + 1]
            own = system.head.decoder(ids, student.states[row : row + 1], mask)[0].log_softmax(-1)
            soft = teacher.head.decoder(ids, taught[row : row + 1], mask)[0].softmax(-1)
            hard = -sum(float(own[j, word]) for j, word in enumerate(answer[1:]))
            softened = -float((soft * own).sum())
            total += float(weights[row, k]) * ((1 - alpha) * hard + alpha * softened)
    assert float(loss) == pytest.approx(total / 6, abs=1e-5)


def test_the_decoder_starts_as_the_fusion_layers():
    system = ranker("albef")
    for mine, theirs in zip(system.head.decoder.stack.blocks, system.fusion.stack.blocks, strict=True):
        assert torch.equal(mine.attention.query_key_value.weight, theirs.attention.query_key_value.weight)
        assert torch.equal(mine.feed_forward[0].weight, theirs.feed_forward[0].weight)
    assert torch.equal(system.head.decoder.words.weight, system.encoders.text.words.weight)
    assert torch.equal(system.head.decoder.word_head.dense.weight, system.word_head.dense.weight)


# ---- two pictures


def paired():
    system = build("albef").double()
    task = TwoPictures(TwoPictures.Config("two_pictures", labels=("true", "false"), pictures=2))
    head = head_of(system, task, 2, "class")
    assert isinstance(head, Classifier)
    system.attach(head.double())
    initialise(system, 0)
    shaken(system)
    head.begin(system)
    copy_students(system)
    return system


def test_albef_reads_two_pictures_through_doubled_layers():
    """Card, check 11, and the layers one by one."""
    system, batch = paired().eval(), example()
    with torch.no_grad():
        first = system.encode_images(batch.images)
        second, texts = first.select(torch.tensor([1, 2, 3, 4, 5, 0])), system.encode_texts(batch.texts)
        logits = system.head.logits(system, [first, second], texts)
        x = texts.states["last"]
        for block in system.fusion.stack.blocks:  # both start as the pre-trained layer
            x = block(x, texts.state_mask, first.states["last"], None)
            x = block(x, texts.state_mask, second.states["last"], None)
        torch.testing.assert_close(logits, system.head.layers.mlp(x[:, 0]))
        assert not torch.allclose(logits, system.head.logits(system, [second, first], texts))


def test_keys_and_values_of_a_pair_stay_one_after_a_step():
    system, batch = paired(), example()
    images, texts = system.encode_images(batch.images), system.encode_texts(batch.texts)
    optimizer = torch.optim.SGD(system.parameters(), 0.1)
    system.head.logits(system, [images, images], texts).pow(2).sum().backward()
    optimizer.step()
    layers = system.head.layers
    for one, other in zip(layers.first.blocks, layers.second.blocks, strict=True):
        assert one.cross.key_value is other.cross.key_value
        assert not torch.equal(one.cross.query.weight, other.cross.query.weight)
        assert not torch.equal(one.attention.query_key_value.weight, other.attention.query_key_value.weight)


@pytest.mark.parametrize(("step", "alpha"), [(0, 0.0), (3, 0.24), (5, 0.4), (7, 0.4)])
def test_softened_targets_are_the_momentum_copies(step, alpha):
    """L = (1 - alpha) CE + alpha CE(softmax of the copies' logits), the copies' head included; alpha rises to 0.4 over
    the first epoch."""
    system, batch = paired().eval(), example()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in system.head.teacher.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        labels = torch.tensor([0, 1, 1, 0, 1, 0])
        pixels = torch.stack([batch.images.pixels, batch.images.pixels.flip(0)], 1).flatten(0, 1)
        images = type(batch.images)(pixels, torch.arange(6).repeat_interleave(2))
        batch = type(batch)(images, batch.texts, batch.image_id, batch.text_id, batch.index, {"class": labels})
        before = {name: p.clone() for name, p in system.named_parameters()}
        loss = float(system.head.losses(system, batch, Progress(step, 5, 10, 6)).terms["task"])
        assert all(torch.equal(p, before[name]) for name, p in system.named_parameters())  # all stand where they stood

        own = system.head.of_batch(system, batch).log_softmax(-1)
        teacher = system.head.teacher
        seen = [teacher.encoders.encode_images(images.part(k)) for k in range(2)]
        read = teacher.encoders.encode_texts(batch.texts.ids, batch.texts.mask)
        soft = teacher.head.layers.of(system, seen, read).softmax(-1)
        hard = -own[torch.arange(6), labels].mean()
        by_hand = (1 - alpha) * hard - alpha * (soft * own).sum(1).mean()
        assert loss == pytest.approx(float(by_hand), abs=1e-6)


def test_entailment_s_targets_are_softened_from_the_first_step():
    """Card, section 6: no ramp for SNLI-VE."""
    system, batch = build("albef").double(), example()
    task = Entailment(Entailment.Config("entailment", labels=("a", "b", "c")))
    system.attach(head_of(system, task, 3, "class").double())
    shaken(system)
    copy_students(system)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    batch = type(batch)(batch.images, batch.texts, batch.image_id, batch.text_id, batch.index, {"class": labels})
    with torch.no_grad():
        system.eval()
        loss = float(system.head.losses(system, batch, Progress(0, 5, 10, 6)).terms["task"])
        own = system.head.of_batch(system, batch).log_softmax(-1)  # the copies are as the student is
        hard = -own[torch.arange(6), labels].mean()
        assert loss == pytest.approx(float(0.6 * hard - 0.4 * (own.exp() * own).sum(1).mean()), abs=1e-6)


@torch.no_grad()
def test_blip_s_answers_are_those_of_transformers():
    """Its decoder, random and small: the same logits of every word."""
    transformers = pytest.importorskip("transformers")
    system, batch = ranker("blip").float(), example()
    mine, text = system.head.decoder, system.config.text
    first = mine.stack.blocks[0]
    config = transformers.models.blip.configuration_blip.BlipTextConfig(
        hidden_size=text.width,
        intermediate_size=first.feed_forward[0].out_features,
        encoder_hidden_size=text.width,
        vocab_size=VOCABULARY.size,
        num_hidden_layers=len(mine.stack.blocks),
        num_attention_heads=first.attention.heads,
        max_position_embeddings=text.length,
        layer_norm_eps=text.eps,
        is_decoder=True,
    )
    theirs = transformers.models.blip.modeling_blip_text.BlipTextLMHeadModel(config).eval()
    theirs.load_state_dict(transformers_names(mine))
    fused = system.fuse([system.encode_images(batch.images)], system.encode_texts(batch.texts))
    assert not fused.mask.all(), "questions of several lengths"
    ids = ANSWERS[[1, 2, 1, 2, 1, 2]]
    logits = mine(ids, fused.states, fused.mask)
    for row, words in enumerate(fused.mask):  # each without its padding: 5.23 passes over the mask it is given
        memory = fused.states[row : row + 1, words]
        own = theirs(ids[row : row + 1], encoder_hidden_states=memory, is_decoder=True).logits
        torch.testing.assert_close(logits[row : row + 1], own, atol=1e-5, rtol=1e-5)


def transformers_names(decoder) -> dict[str, torch.Tensor]:
    """A decoder's weights as `BlipTextLMHeadModel` calls them."""
    embeddings, head = "bert.embeddings", "cls.predictions"
    parts: dict[str, nn.Module] = {
        f"{embeddings}.word_embeddings": decoder.words,
        f"{embeddings}.LayerNorm": decoder.embedding_norm,
        f"{head}.transform.dense": decoder.word_head.dense,
        f"{head}.transform.LayerNorm": decoder.word_head.norm,
    }
    tensors = {
        f"{embeddings}.position_embeddings.weight": decoder.positions,
        f"{head}.decoder.weight": decoder.words.weight,
        f"{head}.decoder.bias": decoder.word_head.bias,
        f"{head}.bias": decoder.word_head.bias,
    }
    for place, block in enumerate(decoder.stack.blocks):
        layer = f"bert.encoder.layer.{place}"
        for name, own, norm in (
            ("attention", block.attention, block.attention_norm),
            ("crossattention", block.cross, block.cross_norm),
        ):
            parts |= {f"{layer}.{name}.output.dense": own.out, f"{layer}.{name}.output.LayerNorm": norm}
            packed = [own.query_key_value] if name == "attention" else [own.query, own.key_value]
            for kind in ("weight", "bias"):
                rows = torch.cat([getattr(part, kind) for part in packed]).chunk(3)
                names = (f"{layer}.{name}.self.{k}.{kind}" for k in ("query", "key", "value"))
                tensors |= dict(zip(names, rows, strict=True))
        parts |= {f"{layer}.intermediate.dense": block.feed_forward[0], f"{layer}.output.dense": block.feed_forward[2]}
        parts[f"{layer}.output.LayerNorm"] = block.feed_forward_norm
    return tensors | {f"{name}.{k}": x for name, part in parts.items() for k, x in part.state_dict().items()}
