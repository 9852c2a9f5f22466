"""DiDE: the distillation of attention against the slow version, and the checks of its card (section 11)."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from tests.reference import dide as slow
from tests.systems.common import PROGRESS, VOCABULARY, build, example, gradients, random, shaken
from tests.systems.test_survey import spanned
from tuwen import systems
from tuwen.errors import UserError
from tuwen.nn.initial import initialise
from tuwen.nn.relations import Crossing, recorded
from tuwen.objectives.distillation import attention_distillation, log_attention, soft_answers, soft_classes
from tuwen.systems.heads.classes import AnswerHead
from tuwen.systems.heads.distilled import blank_pair, crossing_of, taught_probabilities, tokens_of
from tuwen.systems.system import Losses
from tuwen.tasks.heads import Classifier, head_of
from tuwen.tasks.ranking import RetrievalHead
from tuwen.tasks.two_pictures import TwoPictures
from tuwen.tasks.vqa import VQA

FUSING = [name for name in systems.names() if systems.find(name).can("fuse")]
DIRECTIONS = {"vilt": 2, "flava": 2, "bridgetower": 2, "ernie_unix2": 2, "albef": 1, "blip": 1, "simla": 1, "r2d2": 1}
WORDS = torch.tensor([[True, True, True, False], [True, True, False, False]])


def crossing(seed: int, heads: int = 2, words: int = 4, patches: int = 3, width: int = 5, rows: int = 2) -> Crossing:
    lengths = (words, patches, patches, words)
    return Crossing(*(random(rows, heads, n, width, seed=10 * seed + k) for k, n in enumerate(lengths)))


def learner(task: str = "vqa", classes: int = 3, pictures: int = 1):
    """A student with its head and a teacher that has one, in float64, mid-run."""
    student, teacher = build("dide"), build("vilt", 1)
    teacher.attach(Classifier(teacher, Stub(task, pictures), classes, "x", teacher.adapt(task, classes, pictures)))
    student.attach(student.adapt(task, classes, pictures))
    student.roles = {"teacher": teacher}
    for k, system in enumerate((teacher, student)):
        initialise(system, k)
        shaken(system, 3 + k)
    teacher.requires_grad_(False).eval()
    return student


class Stub:
    def __init__(self, task: str, pictures: int):
        self.task, self.pictures = task, pictures


def two_pictures(batch, second: Tensor):
    pixels = torch.stack([batch.images.pixels, second], 1).flatten(0, 1)
    images = type(batch.images)(pixels, torch.arange(len(batch)).repeat_interleave(2))
    return dataclasses.replace(batch, images=images)


# ---- the loss


def test_the_attention_s_loss_is_the_slow_one_s_with_gradients():
    student, teacher = crossing(1), crossing(2)
    parts = [x.requires_grad_() for x in student]
    loss = attention_distillation(student, teacher, WORDS)
    by_hand = slow.attention(student, teacher, WORDS.tolist())
    assert float(loss.detach()) == pytest.approx(float(by_hand.detach()), rel=1e-9)
    for mine, its in zip(torch.autograd.grad(loss, parts), torch.autograd.grad(by_hand, parts), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-12)


def test_nothing_is_left_to_learn_where_attention_is_the_teacher_s():
    """Check 1."""
    assert float(attention_distillation(crossing(1), crossing(1), WORDS)) == pytest.approx(0, abs=1e-12)


def test_the_divergence_is_forward():
    """Check 2: 0.75 ln 1.5 + 0.25 ln 0.5, not 0.1438, the reverse one."""
    one, zero = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 2, 1, dtype=torch.float64)
    keys = torch.tensor([math.log(3), 0.0], dtype=torch.float64).view(1, 1, 2, 1)
    student, teacher = Crossing(one, zero, None, None), Crossing(one, keys, None, None)
    loss = attention_distillation(student, teacher, torch.ones(1, 1, dtype=torch.bool))
    assert float(loss) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-9)
    assert float(loss) == pytest.approx(0.13081, abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 7.0, 1e4])
def test_padding_changes_nothing(value):
    """Check 3: a padded word with any query and key; with -inf the loss would be NaN."""
    loss = attention_distillation(crossing(1), crossing(2), WORDS)

    def padded(x: Crossing, sign: float) -> Crossing:
        more = torch.full((2, 2, 1, 5), sign * value, dtype=torch.float64)
        return Crossing(torch.cat([x[0], more], 2), x[1], x[2], torch.cat([x[3], more], 2))

    words = torch.cat([WORDS, torch.zeros(2, 1, dtype=torch.bool)], 1)
    again = attention_distillation(padded(crossing(1), 1), padded(crossing(2), -1), words)
    assert float(again) == pytest.approx(float(loss), rel=1e-12)


def test_a_word_sees_the_picture_alone():
    """Check 4: each row sums to 1 over real keys; the teacher's is no slice of its joint one, which sums to less."""
    teacher, batch = shaken(build("vilt")).eval(), spanned()
    images, texts = teacher.encode_images(batch.images), teacher.encode_texts(batch.texts)
    student = build("dide")
    taught = student.teaching.crossing(teacher, images, texts)
    shares = log_attention(taught.patch_queries, taught.word_keys, batch.texts.mask).exp()
    torch.testing.assert_close(shares.sum(-1), torch.ones_like(shares[..., 0]))
    assert (shares.movedim(-1, 1)[~batch.texts.mask] == 0).all()
    with recorded(teacher, student.teaching.meeting(teacher).where) as relations:
        teacher.fuse([images], texts)
    ((_, _, joint),) = relations.values()
    length = batch.texts.ids.shape[1]
    assert (joint[:, :, length:, :length].sum(-1) < 0.999).all()
    ours = log_attention(taught.word_queries, taught.patch_keys, batch.texts.mask.new_ones(6, 1)).exp()
    part = joint[:, :, :length, length:]
    torch.testing.assert_close(ours, part / part.sum(-1, keepdim=True))


def test_answers_and_classes_by_hand():
    """Check 10, and KL of classes over rows."""
    assert float(soft_answers(torch.zeros(2, 3129), torch.full((2, 3129), 0.5))) == pytest.approx(2168.9, abs=0.1)
    logits, taught = random(3, 4, seed=1), random(3, 4, seed=2).softmax(1)
    by_hand = sum(
        float(t) * (math.log(float(t)) - float(s))
        for ts, ss in zip(taught, logits.log_softmax(1), strict=True)
        for t, s in zip(ts, ss, strict=True)
    )
    assert float(soft_classes(logits, taught)) == pytest.approx(by_hand / 3, rel=1e-9)


# ---- teachers


@pytest.mark.parametrize("name", FUSING)
def test_where_each_system_s_text_and_picture_meet(name):
    """What was recorded is queries and keys of words and patches, by shape; or the system is refused in a line."""
    teacher, student, batch = build(name).eval(), build("dide"), spanned()
    if name in ("slan", "mvptr", "ege_cmp", "dide"):
        with pytest.raises(UserError, match=f"teacher: {name} has no layer of its own in which text") as error:
            student.check_teacher("teacher", teacher)
        assert "\n" not in str(error.value)
        return
    student.check_teacher("teacher", teacher)
    with torch.no_grad():
        images, texts = teacher.encode_images(batch.images), teacher.encode_texts(batch.texts)
        taught = student.teaching.crossing(teacher, images, texts)
        own = crossing_of(student.looked(batch.images), student.looked(batch.texts))
    directions = [all(x is not None for x in pair) for pair in (taught[:2], taught[2:])]
    if name in DIRECTIONS:
        assert directions == [True, DIRECTIONS[name] == 2]
    assert any(directions)
    for mine, its in zip(own, taught, strict=True):
        assert its is None or mine.shape[:3] == its.shape[:3]
    assert torch.isfinite(attention_distillation(own, taught, batch.texts.mask))


def test_of_one_stream_words_are_words():
    """FLAVA's sequence is class token, patches, words: the queries recorded are those of these places."""
    teacher, batch = shaken(build("flava")).eval(), spanned()
    images, texts = teacher.encode_images(batch.images), teacher.encode_texts(batch.texts)
    taught = build("dide").teaching.crossing(teacher, images, texts)
    seen, read = teacher.image_to_fusion(images.states["last"]), teacher.text_to_fusion(texts.states["last"])
    (block,) = teacher.fusion.blocks
    for states, queries, keys in ((read, taught[0], taught[3]), (seen, taught[2], taught[1])):
        parts = block.attention.query_key_value(block.attention_norm(states)).chunk(3, -1)
        for part, recorded_part in zip(parts, (queries, keys), strict=False):
            torch.testing.assert_close(part.unflatten(-1, (2, -1)).transpose(1, 2), recorded_part)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heads": 4}, "vilt has 2 heads, and this run's model 4"),
        ({"patch": 16}, "vilt has 17 image tokens, and this run's model 5"),
        ({"pool": "max"}, "vilt has 17 image tokens, and this run's model 16"),
    ],
)
def test_a_teacher_of_other_heads_or_tokens_is_refused(change, words):
    config = systems.find("dide").Config.sized("tiny")
    text = dataclasses.replace(config.text, heads=change.get("heads", 2))
    student = build("dide", image=dataclasses.replace(config.image, **change), text=text)
    with pytest.raises(UserError, match=words):
        student.check_teacher("teacher", build("vilt"))


def test_a_blank_text_is_of_another_length_than_a_picture():
    images, texts = blank_pair(build("vilt"))
    assert (tokens_of(images), tokens_of(texts)) == (17, 2)


def test_it_starts_as_its_teacher():
    """The towers are ViLT on one side alone; of ALBEF the picture's tower has the same shapes."""
    teacher, student = build("vilt", 7).eval(), build("dide").eval()
    student.roles = {"teacher": teacher}
    student.begin()
    batch = spanned()
    with torch.no_grad():
        words = teacher.encode_texts(batch.texts)
        states = teacher.encoders.image.stack(words.states["last"], batch.texts.mask)
        vector = teacher.pooler(states[:, 0]).tanh()
        # one eps for all norms of a tower, where ViLT has BERT's and a ViT's
        torch.testing.assert_close(
            student.encode_texts(batch.texts).states["vector"][:, 0], vector, rtol=1e-3, atol=1e-6
        )
        patches = teacher.encode_images(batch.images).states["last"] + teacher.types.weight[1]
        vector = teacher.pooler(teacher.encoders.image.stack(patches)[:, 0]).tanh()
        torch.testing.assert_close(student.encode_images(batch.images).states["vector"][:, 0], vector)
    student = build("dide", starts_as="own")
    before = {name: x.clone() for name, x in student.state_dict().items()}
    student.begin()
    assert all(torch.equal(x, before[name]) for name, x in student.state_dict().items())
    albef = build("albef", 7)
    student.roles, student.config = {"teacher": albef}, dataclasses.replace(student.config, starts_as="teacher")
    student.begin()
    assert torch.equal(student.encoders.image.patches.weight, albef.encoders.image.patches.weight)


# ---- pre-training and fine-tuning


def test_pre_training_compares_the_pairs_that_the_teacher_saw():
    """Attention and match of pairs of which half have another row's picture, row by row."""
    student, batch = shaken(build("dide")), example()
    losses = student(batch, PROGRESS)
    assert set(losses.terms) == {"contrast", "attention", "matching"}
    draws = PROGRESS.uniform(batch, 2, "wrong picture")
    same = batch.same_here()
    order = draws[:, 0].argsort().tolist()
    shown = list(range(6))
    for row in order[3:]:
        wrong = [k for k in range(6) if not same[row, k]]
        shown[row] = wrong[int(float(draws[row, 1]) * len(wrong))]
    teacher, words = student.roles["teacher"], batch.texts.mask
    images, texts = student.looked(batch.images).select(torch.tensor(shown)), student.looked(batch.texts)
    seen = teacher.encode_images(batch.images).select(torch.tensor(shown))
    read = teacher.encode_texts(batch.texts)
    taught = student.teaching.crossing(teacher, seen, read)
    by_hand = slow.attention(crossing_of(images, texts), taught, words.tolist())
    assert float(losses.terms["attention"].detach()) == pytest.approx(float(by_hand.detach()), rel=1e-9)
    odds = teacher.match(seen, read)[:, 0]
    taught_match = torch.stack([1 - odds.sigmoid(), odds.sigmoid()], 1)
    own = student.match_logits(images, texts).log_softmax(1)
    kl = (taught_match * (taught_match.log() - own)).sum(1).mean()
    assert float(losses.terms["matching"].detach()) == pytest.approx(float(kl.detach()), rel=1e-5)


def test_retrieval_encodes_once_what_pre_training_does():
    student, batch, runs = shaken(build("dide")), example(), []
    expected = student(batch, PROGRESS).terms
    for side in ("image", "text"):
        tower = student.encoders.get_submodule(f"{side}.stack")
        tower.register_forward_hook(lambda *_, side=side: runs.append(side))
    student.attach(RetrievalHead(student))
    terms = student(batch, PROGRESS).terms
    assert sorted(runs) == ["image", "text"]
    assert {name: term.item() for name, term in terms.items()} == {name: x.item() for name, x in expected.items()}


@pytest.mark.parametrize("task", ["vqa", "entailment", "two_pictures"])
def test_fine_tuning_is_attention_and_answers_of_the_teacher(task):
    pictures = 2 if task == "two_pictures" else 1
    student, batch = learner(task, 3, pictures), spanned()
    other = 255 - batch.images.pixels
    batch = two_pictures(batch, other) if pictures == 2 else batch
    losses = student(batch, PROGRESS)
    assert isinstance(losses, Losses)
    assert set(losses.terms) == {"answers", "attention"}
    teacher, parts = student.roles["teacher"], [batch.images.part(k) for k in range(pictures)]
    texts, read = student.looked(batch.texts), teacher.encode_texts(batch.texts)
    images, seen = [student.looked(part) for part in parts], [teacher.encode_images(part) for part in parts]
    by_hand = 0.0
    for mine, its in zip(images, seen, strict=True):
        taught = student.teaching.crossing(teacher, its, read)
        by_hand += float(slow.attention(crossing_of(mine, texts), taught, batch.texts.mask.tolist()).detach())
    assert float(losses.terms["attention"]) == pytest.approx(by_hand, rel=1e-9)
    taught = teacher.head.layers(teacher.fuse(seen, read).pooled)
    text, vectors = texts.states["vector"][:, 0], [x.states["vector"][:, 0] for x in images]
    fused = torch.cat([student.fusion(torch.cat([text, vector], 1)) for vector in vectors], 1)
    own = student.head.layers(fused)
    if task == "vqa":
        p = taught.sigmoid()
        answers = -(p * own.sigmoid().log() + (1 - p) * (1 - own.sigmoid()).log()).sum(1).mean()
    else:
        p = taught.softmax(1)
        answers = (p * (p.log() - own.log_softmax(1))).sum(1).mean()
    assert float(losses.terms["answers"]) == pytest.approx(float(answers), rel=1e-5)


def test_the_teacher_stays_as_it_is():
    """Check 5: no gradient, and no dropout between two calls."""
    student, batch = learner(), spanned()
    teacher = student.roles["teacher"]
    student.train()
    assert not teacher.training
    before = {name: x.clone() for name, x in teacher.state_dict().items()}
    student(batch, PROGRESS).total.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(x, before[name]) for name, x in teacher.state_dict().items())
    seen, read = teacher.encode_images(batch.images), teacher.encode_texts(batch.texts)
    assert torch.equal(taught_probabilities(teacher, [seen], read), taught_probabilities(teacher, [seen], read))


@torch.no_grad()
def test_answers_from_kept_vectors_are_those_of_pairs():
    """Check 6: any picture with any text, from what was kept of each; and a picture's vector knows no text."""
    student, batch = learner().eval(), spanned()
    images, texts = student.encode_images(batch.images), student.encode_texts(batch.texts)
    for shift in range(6):
        rows = torch.arange(6).roll(shift)
        kept = student.head.logits(student, [images.select(rows)], texts)
        one = [
            student.head.logits(
                student,
                [student.encode_images(batch.images.select(rows[k : k + 1]))],
                student.encode_texts(batch.texts.select(torch.tensor([k]))),
            )
            for k in range(6)
        ]
        torch.testing.assert_close(kept, torch.cat(one), rtol=0, atol=1e-5)
    changed = dataclasses.replace(batch, texts=spanned("texts").texts)
    again = student.encode(changed, PROGRESS)["images"]
    assert torch.equal(again.states["vector"], student.encode(batch, PROGRESS)["images"].states["vector"])
    assert images.states["vector"].shape == (6, 1, 32)


@torch.no_grad()
def test_what_is_looked_at_is_what_is_encoded():
    """Training reads all positions of the last block, use the pooled one alone."""
    student, batch = shaken(build("dide")).eval(), spanned()
    for plain, looked in (
        (student.encode_images(batch.images), student.looked(batch.images)),
        (student.encode_texts(batch.texts), student.looked(batch.texts)),
    ):
        torch.testing.assert_close(plain.states["vector"], looked.states["vector"])
        torch.testing.assert_close(plain.pooled, looked.pooled)


def test_labels_are_not_read():
    """Check 7."""
    student, batch = learner("entailment"), spanned()
    losses = []
    for labels in (torch.zeros(6, dtype=torch.int64), torch.tensor([2, 0, 1, 1, 0, 2])):
        losses.append(student(dataclasses.replace(batch, columns={"class": labels}), PROGRESS).total)
    assert torch.equal(*losses)
    assert student.head.needs().columns == ()


def test_one_picture_twice_is_twice_its_attention():
    """Check 8."""
    batch = spanned()
    student = learner("two_pictures", 2, 2)
    both = student(two_pictures(batch, batch.images.pixels), PROGRESS).terms["attention"]
    own = crossing_of(student.looked(batch.images), student.looked(batch.texts))
    teacher = student.roles["teacher"]
    taught = student.teaching.crossing(teacher, teacher.encode_images(batch.images), teacher.encode_texts(batch.texts))
    assert float(both) == pytest.approx(2 * float(attention_distillation(own, taught, batch.texts.mask)), rel=1e-9)


def test_attention_teaches_queries_and_keys_of_the_last_layer_and_what_is_before():
    """Check 9: of the last block nothing but queries, keys and the norm before them."""
    student = learner()
    loss = student(spanned(), PROGRESS).terms["attention"]
    moved = {name for name, g in gradients(loss, student).items() if g is not None and g.abs().max() > 0}
    for side in ("image", "text"):
        last = f"encoders.{side}.stack.blocks.1"
        weight = gradients(loss, student)[f"{last}.attention.query_key_value.weight"]
        queries, keys, values = weight.chunk(3)
        assert queries.abs().max() > 0
        assert keys.abs().max() > 0
        assert (values == 0).all()
        assert {name for name in moved if name.startswith(last)} <= {
            f"{last}.attention.query_key_value.weight",
            f"{last}.attention.query_key_value.bias",
            f"{last}.attention_norm.weight",
            f"{last}.attention_norm.bias",
        }
        assert f"encoders.{side}.stack.blocks.0.feed_forward.0.weight" in moved
    assert not any(name.startswith(("fusion", "head", "match_head")) or "pooler" in name for name in moved)


def test_a_teacher_that_chooses_one_answer_gives_shares():
    """Its softmax, where it does not tell each answer for itself."""
    student, batch = learner("vqa"), spanned()
    teacher = student.roles["teacher"]
    seen, read = [teacher.encode_images(batch.images)], teacher.encode_texts(batch.texts)
    logits = teacher.head.logits(teacher, seen, read).float()
    assert isinstance(teacher.head.layers, AnswerHead)
    assert torch.equal(taught_probabilities(teacher, seen, read), logits.sigmoid())
    teacher.head.binary = False
    assert torch.equal(taught_probabilities(teacher, seen, read), logits.softmax(1))


def test_the_heads_are_the_paper_s():
    """Card, section 3: W -> 2 W -> classes on the fused vector; of two pictures on both."""
    student = build("dide")
    for task, pictures in ((VQA(VQA.Config("vqa", answers=tuple("abcde"))), 1), (TwoPictures(), 2)):
        classes = 5 if pictures == 1 else 2
        head = head_of(student, task, classes, "target")
        assert [type(layer).__name__ for layer in head.layers] == ["Dropout", "Linear", "LayerNorm", "GELU", "Linear"]
        assert (head.layers[1].in_features, head.layers[1].out_features) == (32 * pictures, 64)
        assert head.layers[-1].out_features == classes
        assert head.binary == (pictures == 1)
        assert head.teachers == {"teacher": "fuse task"}
    assert student.adapt("ranking") is None


def test_towers_of_other_heads_are_refused():
    config = systems.find("dide").Config.sized("tiny")
    with pytest.raises(UserError, match=r"model\.image\.heads is 2, model\.text\.heads 4"):
        systems.find("dide")(dataclasses.replace(config, text=dataclasses.replace(config.text, heads=4)), VOCABULARY)
    with pytest.raises(UserError, match="dide learns its towers' attention"):
        systems.find("dide")(
            dataclasses.replace(config, text=dataclasses.replace(config.text, locked=True)), VOCABULARY
        )


def test_without_weight_the_teacher_s_attention_counts_nothing():
    """In pre-training and for a task; the other losses stay."""
    terms = []
    for weight in (2.0, 0.0):
        student, learning = build("dide", attention=weight), learner()
        learning.config = dataclasses.replace(learning.config, attention=weight)
        student.roles = {"teacher": build("vilt", 1)}
        batch = dataclasses.replace(example(), columns={"label": torch.zeros(len(example()), dtype=torch.int64)})
        terms.append((student(example(), PROGRESS).terms, learning(batch, PROGRESS).terms))
    for whole, without in zip(*terms, strict=True):
        assert whole.keys() == without.keys()
        for name, term in without.items():
            assert float(term.detach()) == (0.0 if name == "attention" else float(whole[name].detach()))
        assert float(whole["attention"]) > 0
