"""Systems that learn from one side alone, DINO and masked words; and what other systems take of them."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from tests.reference.scalars import cross_entropy, mean, softmax
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
from tuwen import cli, tasks
from tuwen.data.batch import Batch
from tuwen.objectives.self_distillation import self_distillation, view_targets
from tuwen.systems import mlm as words_module
from tuwen.systems.system import Progress
from tuwen.training import checkpoint, loop
from tuwen.training.config import RunConfig


def viewed(rows: list[int] | None = None) -> Batch:
    """The common batch with a second large crop and two small ones."""
    batch = example(rows)
    pixels = batch.images.pixels
    views = {"second": pixels.flip(3), "local0": pixels[:, :, 4:20, 4:20], "local1": pixels[:, :, 12:28, 8:24]}
    return dataclasses.replace(batch, images=dataclasses.replace(batch.images, views=views))


def dino_of(**changes):
    """Mid-run, its centre away from zero."""
    system = shaken(build("dino", **changes))
    system.target["centre"].mean.copy_(0.1 * random(system.config.prototypes, seed=9))
    return system


def slow_dino(system, batch: Batch) -> torch.Tensor:
    """Algorithm 1 of the paper, pair by pair of views, picture by picture."""
    views = [batch.images, *(batch.images.view(name) for name in ("second", "local0", "local1"))]

    def logits(tower, head, images):
        x = head.layers(tower.pooled(tower(images.pixels)))
        x = x / x.norm(dim=1, keepdim=True)
        weight = head.prototypes.weight
        return x @ (weight / weight.norm(dim=1, keepdim=True)).T

    student = [logits(system.student["image"], system.student["head"], view) for view in views]
    centre = system.target["centre"].mean
    terms = []
    with torch.no_grad():
        taught = [logits(system.encoders["image"], system.target["head"], view) for view in views[:2]]
    for g, teacher in enumerate(taught):
        for v, told in enumerate(student):
            for row in range(len(batch)) if v != g else ():
                target = softmax(list((teacher[row] - centre) / 0.04))
                terms.append(cross_entropy(list(told[row] / 0.1), target))
    return mean(terms)


@pytest.mark.parametrize("step", [7, 3])
def test_dino_is_the_slow_version_and_prototypes_stay_for_an_epoch(step):
    system, batch = dino_of(prototypes=6, frozen=1.0), viewed()
    progress = dataclasses.replace(PROGRESS, step=step)  # an epoch has five steps
    losses = system(batch, progress)
    want = slow_dino(system, batch)
    assert float(losses.terms["self_distillation"].detach()) == pytest.approx(float(want.detach()), abs=1e-9)
    ours, theirs = gradients(losses.terms["self_distillation"], system), gradients(want, system)
    assert all(name.startswith("student.") for name in ours)
    prototypes = "student.head.prototypes.weight"
    assert theirs[prototypes].abs().max() > 1e-6
    if step < PROGRESS.steps_per_epoch:
        assert ours.pop(prototypes) is None
        theirs.pop(prototypes)
    assert_same_gradients(ours, theirs)


def test_self_distillation_by_hand():
    """One picture, two prototypes, temperatures 1: the teacher's views say (1, 0) and (1/2, 1/2)."""
    targets = view_targets(torch.tensor([[[50.0, 0.0]], [[3.0, 1.0]]]), torch.tensor([2.0, 0.0]), 1.0)
    torch.testing.assert_close(targets, torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]]]))
    student = torch.tensor([[[0.0, 0.0]], [[math.log(3), 0.0]], [[0.0, math.log(3)]]])
    # of the first target the views 1 and 2, of the second the views 0 and 2
    crosses = [-math.log(0.75), -math.log(0.25), math.log(2), -(math.log(0.75) + math.log(0.25)) / 2]
    assert float(self_distillation(student, targets, 1.0)) == pytest.approx(sum(crosses) / 4)


def test_dino_learns_row_by_row():
    """In parts as whole: a row is held against what earlier batches left."""
    system = dino_of()
    whole = system(viewed(), PROGRESS)
    parts = [system(viewed(rows), PROGRESS) for rows in ([0, 1, 2], [3, 4, 5])]
    value, *halves = (float(losses.terms["self_distillation"].detach()) for losses in (whole, *parts))
    assert value == pytest.approx(sum(halves) / 2, abs=1e-12)
    kept = torch.cat([part.keep["logits"] for part in parts])
    torch.testing.assert_close(whole.keep["logits"], kept, rtol=0, atol=1e-12)


def test_its_average_begins_as_the_student_and_follows_it_by_a_cosine():
    system = build("dino", momentum=0.9).double()
    pairs = [("student.image.", "encoders.image."), ("student.head.", "target.head.")]
    named = dict(system.named_parameters())
    twins = {n: o + n.removeprefix(s) for s, o in pairs for n in named if n.startswith(s)}
    assert len(twins) > 30
    assert all(torch.equal(named[n], named[o]) and not named[o].requires_grad for n, o in twins.items())
    with torch.no_grad():
        for name in twins:
            named[name].add_(1.0)
    before = {name: named[name].clone() for name in twins.values()}
    system.before_step(Progress(step=5, steps_per_epoch=5, total_steps=10, batch_size=6))  # half way: 0.95
    for name, old in before.items():
        torch.testing.assert_close(named[name], old + 0.05, rtol=0, atol=1e-9)
    system.before_step(Progress(step=10, steps_per_epoch=5, total_steps=10, batch_size=6))  # at the end: 1
    for name, old in before.items():
        torch.testing.assert_close(named[name], old + 0.05, rtol=0, atol=1e-9)


def test_its_centre_is_a_running_mean_of_what_the_teacher_says():
    system = dino_of(centre_momentum=0.75)
    before = system.target["centre"].mean.clone()
    losses = system(viewed(), PROGRESS)
    system.after_step(losses.keep, PROGRESS)
    expected = 0.75 * before + 0.25 * losses.keep["logits"].mean(0)
    torch.testing.assert_close(system.target["centre"].mean, expected, rtol=0, atol=1e-9)
    assert (before - system.target["centre"].mean).abs().max() > 1e-3


def test_what_is_used_is_the_average_without_the_student():
    system, batch = dino_of().eval(), viewed()
    vectors = system.encode_images(batch.images).pooled
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(6, dtype=torch.float64))
    parts = {name.split(".")[0] for name in system.for_use().state_dict()}
    assert parts == {"encoders"}
    assert torch.equal(system.encode_images(batch.images).pooled, vectors)
    assert {"linear_probe", "image_retrieval", "classification"} <= set(tasks.of_system(type(system)))
    assert "retrieval" not in tasks.of_system(type(system))


def test_masked_words_are_told_from_the_words_around_them(monkeypatch):
    """The slow version row by row without padding, value and gradient; pad positions change nothing."""
    system, batch = shaken(build("mlm", mask_share=0.5)), example()
    masks = watched(monkeypatch, words_module, "mask_words")
    losses = system(batch, PROGRESS)
    masked, labels = masks[0][1]
    tower, terms = system.encoders["text"], []
    for row in range(len(batch)):
        real = masked.mask[row]
        states = tower(masked.ids[row : row + 1, real], real[real][None])[0]
        logits = system.word_head(states, tower.words.weight)
        for place, word in enumerate(labels[row, real].tolist()):
            if word >= 0:
                terms.append(cross_entropy(list(logits[place]), [float(k == word) for k in range(VOCABULARY.size)]))
    assert len(terms) > 5
    want = mean(terms)
    assert float(losses.terms["masked_words"].detach()) == pytest.approx(float(want.detach()), abs=1e-9)
    assert_same_gradients(gradients(losses.terms["masked_words"], system), gradients(want, system))
    assert {name.split(".")[0] for name in system.for_use().state_dict()} == {"encoders"}


def test_their_towers_go_into_another_system(tmp_path):
    """`init: {image: RUN, text: RUN}`: the average's picture tower, the text tower and its tokenizer, bit for bit."""
    corpus = "scenes:count=24,side=32"
    plain = {"train.steps": 2, "train.batch_size": 8, "train.threads": 1, "train.precision": "float32"}
    plain |= {"data.workers": 0, "tokenizer.size": 200}
    runs = {
        side: str(loop.train(RunConfig.of(name, "tiny", corpus, changes=plain), tmp_path / name, quiet=True))
        for side, name in (("image", "dino"), ("text", "mlm"))
    }
    changes = plain | {"init": runs, "train.lr": 1e-12, "train.steps": 1}
    run = loop.train(RunConfig.of("clip", "tiny", corpus, changes=changes), tmp_path / "run", quiet=True)
    mine = checkpoint.load_tensors(run / "weights.safetensors")
    for side, donor in runs.items():
        theirs = checkpoint.load_tensors(tmp_path / donor / "weights.safetensors")
        tower = {name: tensor for name, tensor in theirs.items() if name.startswith(f"encoders.{side}.")}
        assert len(tower) > 10
        assert tower.keys() == theirs.keys()  # nothing else is in the weights
        for name, tensor in tower.items():
            torch.testing.assert_close(mine[name], tensor, rtol=0, atol=1e-9, msg=name)


@pytest.mark.slow
def test_words_are_told_far_better_than_by_their_frequency(tmp_path):
    """Under a minute on a free core: on scenes, at size tiny, most of the hidden words."""
    corpus = "scenes:side=32,things=16,objects=2,whole=true,count=2000,languages=en"
    changes = {"train.batch_size": 64, "train.lr": 2e-3, "train.threads": 1, "data.workers": 0, "train.steps": 400}
    run = loop.train(RunConfig.of("mlm", "tiny", corpus, changes=changes), tmp_path / "run", quiet=True)
    lines = [line for line in (run / "metrics.jsonl").read_text().splitlines() if "words_right" in line]
    rights = [float(line.split('"words_right": ')[1].split(",")[0].rstrip("}")) for line in lines[-10:]]
    print(rights)
    assert mean(rights) > 0.5  # the commonest word of these texts is one in ten


def test_the_recipe_of_max_vl_hands_both_towers_on(tmp_path):
    """recipes/max_vl.yaml by the command, each stage for two steps."""
    recipe = str(Path(__file__).resolve().parents[2] / "recipes" / "max_vl.yaml")
    few = ["train.steps=2", "train.batch_size=8", "train.lr=1e-12", "data.workers=0", "tokenizer.size=200"]
    few += ["train.precision=float32", "train.threads=1"]
    command = ["run", recipe, "--corpus", "scenes:count=24,side=32", "--out", str(tmp_path), "--size", "tiny"]
    assert cli.main([*command, "--no-rehearsal", "--set", *few]) == 0
    names = {"image": "pictures", "text": "words"}
    mine = checkpoint.load_tensors(tmp_path / "main" / "weights.safetensors")
    assert RunConfig.read(tmp_path / "main").init == {side: str(tmp_path / name) for side, name in names.items()}
    for name in names.values():
        for part, tensor in checkpoint.load_tensors(tmp_path / name / "weights.safetensors").items():
            torch.testing.assert_close(mine[part], tensor, rtol=0, atol=1e-9, msg=part)
