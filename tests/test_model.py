"""A run loaded again: vectors, rankings, mistakes."""

import io
import shutil
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tuwen
from tests.training import toy
from tests.training.test_resume import stop_after
from tuwen.data.batch import Images, Texts
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.images import to_pillow
from tuwen.errors import UserError
from tuwen.nn.generation import Generation
from tuwen.predictor import language_of
from tuwen.training import checkpoint, loop
from tuwen.training.config import RunConfig
from tuwen.training.signals import Interrupted

TEXTS = ["red green", "blue", "颜色 pink gold teal rust grey red", "", "grey grey grey"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with toy.registered():
        config = toy.config(train__steps=3)
        return loop.train(config, tmp_path_factory.mktemp("runs") / "run", corpus=toy.Memory(), quiet=True)


@pytest.fixture
def model(run):
    with toy.registered():
        return tuwen.load(run)


@pytest.fixture
def pictures():
    return [toy.Memory().image(row) for row in range(7)]


def test_vectors_are_the_system_s_own(model, pictures):
    small = [picture[:, ::2, ::2] for picture in pictures]  # of the tower's side, so that nothing is resized
    found = model.embed(images=small, texts=TEXTS)
    assert found.images.dtype == found.texts.dtype == torch.float32
    quarters = torch.stack([picture[:, ::4, ::4] for picture in small]).float().flatten(1) / 255
    by_hand = quarters @ model.system.image.weight.T + model.system.image.bias
    torch.testing.assert_close(found.images, by_hand / by_hand.norm(dim=1, keepdim=True), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.texts.norm(dim=1), torch.ones(5))
    assert found.positions == list(range(7))
    assert model.embed(texts=TEXTS).images is None
    assert model.embed(images=pictures).texts is None


def test_paths_bytes_pillow_and_tensors_are_one(model, pictures, tmp_path):
    image = to_pillow(pictures[0])
    image.save(tmp_path / "图 1.png")
    held = io.BytesIO()
    image.save(held, "png")
    sources = [tmp_path / "图 1.png", str(tmp_path / "图 1.png"), held.getvalue(), image, pictures[0]]
    vectors = model.embed(images=sources).images
    assert torch.equal(vectors, vectors[:1].expand_as(vectors))


def test_batches_and_order_do_not_matter(model, pictures):
    one, many = (model.embed(pictures, TEXTS, batch_size=size) for size in (1, 64))
    torch.testing.assert_close(one.images, many.images, atol=1e-6, rtol=0)
    torch.testing.assert_close(one.texts, many.texts, atol=1e-6, rtol=0)
    turned = model.embed(texts=TEXTS[::-1]).texts.flip(0)
    torch.testing.assert_close(turned, many.texts, atol=1e-6, rtol=0)
    first, second = (model.rank(pictures, TEXTS, batch_size=size) for size in (2, 64))
    assert [r.images for r in first] == [r.images for r in second]


def test_rankings_are_by_cosine_and_equal_ones_keep_their_order(model, pictures):
    pictures = [*pictures, pictures[2]]
    found = model.embed(pictures, TEXTS)
    scores = (found.texts.double() @ found.images.double().T).numpy()
    for t, ranking in enumerate(model.rank(pictures, TEXTS, top_k=0)):
        assert ranking.text == TEXTS[t]
        assert ranking.reranked == 0
        assert sorted(ranking.images) == list(range(8))
        assert ranking.images.index(2) + 1 == ranking.images.index(7)
        np.testing.assert_allclose(ranking.scores, scores[t][ranking.images], atol=1e-6)
        assert ranking.scores == sorted(ranking.scores, reverse=True)


def test_the_best_are_matched_and_the_rest_stay(model, pictures):
    found = model.embed(pictures, TEXTS)
    plain = model.rank(pictures, TEXTS, top_k=0)
    for t, ranking in enumerate(model.rank(pictures, TEXTS, top_k=3, batch_size=2)):
        assert ranking.reranked == 3
        assert set(ranking.images[:3]) == set(plain[t].images[:3])
        assert ranking.images[3:] == plain[t].images[3:]
        matched = 5 * (found.images * found.texts[t].roll(1)).sum(1)
        best = sorted(plain[t].images[:3], key=lambda i: -matched[i])
        assert ranking.images[:3] == best
        np.testing.assert_allclose(ranking.scores[:3], matched[best], atol=1e-5)
        np.testing.assert_allclose(ranking.first[:3], (found.images @ found.texts[t])[best], atol=1e-6)
        assert ranking.scores[3:] == ranking.first[3:] == pytest.approx(plain[t].scores[3:])


def test_broken_pictures_are_named_or_skipped(model, pictures, tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken\.jpg: not a picture"):
        model.embed(images=[pictures[0], path])
    with pytest.raises(UserError, match=r"none.jpg: missing"):
        model.rank([tmp_path / "none.jpg"], ["red"])
    with pytest.raises(UserError, match=r"images\[1\]: "):
        model.embed(images=[pictures[0], b"xx"])
    found = model.embed(images=[path, pictures[0], path, pictures[1]], skip_broken=True)
    assert found.positions == [1, 3]
    assert torch.equal(found.images, model.embed(images=pictures[:2]).images)
    ranking = model.rank([path, *pictures], ["red"], skip_broken=True)[0]
    assert sorted(ranking.images) == list(range(1, 8))


def test_nothing_gives_nothing(model, pictures):
    found = model.embed(images=[], texts=[])
    assert found.images.shape == found.texts.shape == (0, toy.WIDTH)
    assert model.rank([], ["red"])[0].images == []
    assert model.rank(pictures, []) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"texts": "red"}, r"texts must be a list"),
        ({"images": "a.jpg"}, r"images must be a list"),
        ({"images": Image.new("RGB", (8, 8))}, r"images must be a list"),
        ({"texts": ["red", 3]}, r"texts\[1\] is int"),
        ({"texts": ["rot"], "language": "de"}, r"no language 'de' in this run; it has en, zh"),
    ],
)
def test_mistakes(model, given, message):
    with pytest.raises(UserError, match=message):
        model.embed(**given)


def test_no_run_there(tmp_path, run):
    with pytest.raises(UserError, match=r"no config.yaml there"):
        tuwen.load(tmp_path)


def test_the_script_tells_the_language():
    assert language_of("一只狗", ("en", "zh")) == "zh"
    assert language_of("犬がいる", ("en", "zh", "ja")) == "ja"
    assert language_of("a dog", ("zh", "en")) == "en"
    assert language_of("ein Hund", ("de", "fr")) == "de"


def test_tuwen_is_imported_without_torch():
    import subprocess
    import sys

    code = "import sys, tuwen; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_clone_s_folder_beside_it_is_not_taken_for_the_package(tmp_path):
    """Where the install puts the clone's place on Python's path; setuptools' own finder comes too late for it."""
    import os
    import subprocess
    import sys
    from pathlib import Path

    root = Path(tuwen.__file__).parents[1]
    assert "-C editable_mode=compat -e ." in (root / "Makefile").read_text()
    (tmp_path / "tuwen").symlink_to(root)
    command = [sys.executable, "-c", "import tuwen; assert tuwen.__file__"]
    subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(root)}, check=True)


# ---- texts made


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    changes = {"train.batch_size": 8, "train.steps": 2, "train.threads": 1, "data.workers": 0, "tokenizer.size": 200}
    config = RunConfig.of("ernie_unix2", "tiny", "scenes:count=16,side=32", changes=changes)
    return tuwen.load(loop.train(config, tmp_path_factory.mktemp("runs") / "run", quiet=True))


def test_captions_and_translations_are_the_system_s_own(speaking):
    shown = [Scenes(side=32, count=3).image(row) for row in range(3)]
    greedy = Generation("greedy", most=6)
    captions = speaking.generate("zh", images=shown, how=greedy)
    assert speaking.generate("zh", images=shown, how=greedy, batch_size=2) == captions
    system, words = speaking.system, speaking.tokenizer
    with torch.no_grad():
        encoded = system.encode_images(Images(torch.stack(shown)))
        zh, en = (torch.full((3,), speaking.languages.index(name)) for name in ("zh", "en"))
        assert captions == words.decode(system.generate(encoded, None, zh, greedy).ids)
        prompt = Texts(*words.encode(["a dog", "two cats", "a cow"], 32), en)
        beside = words.decode(system.generate(encoded, prompt, zh, Generation()).ids)
        alone = words.decode(system.generate(None, prompt, zh, Generation()).ids)
    texts = ["a dog", "two cats", "a cow"]
    assert speaking.generate("zh", shown, texts) == beside
    assert speaking.generate("zh", texts=texts) == alone
    assert speaking.generate("zh", texts=[]) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"language": "fr", "texts": ["a"]}, "no language 'fr' in this run; it has en, zh"),
        ({"language": "zh"}, "give images, texts, or as many of both"),
        ({"language": "zh", "texts": ["a"], "images": []}, "give images, texts, or as many of both"),
        ({"language": "zh", "texts": "a"}, "texts must be a list"),
        ({"language": "zh", "images": b"x"}, "images must be a list"),
        ({"language": "zh", "images": [b"x"]}, r"images\[0\]"),
        ({"language": "zh", "texts": [3]}, r"texts\[0\] is int, not a text"),
    ],
)
def test_mistakes_in_asking_for_texts_are_told_in_one_line(speaking, given, said):
    with pytest.raises(UserError, match=said):
        speaking.generate(**given)


def test_a_run_without_a_decoder_makes_no_texts(model):
    with pytest.raises(UserError, match=r"cannot generate: it has no decoder; ernie_unix2, nlip can$"):
        model.generate("en", texts=["a"])


def test_a_run_of_an_older_form_loads(run, model, pictures, tmp_path):
    """Its weights held what only training needs beside the rest."""
    older = tmp_path / "older"
    shutil.copytree(run, older)
    (older / "weights.safetensors").unlink()
    checkpoint.save_tensors(older / "weights.safetensors", checkpoint.newest(run))
    names = checkpoint.load_tensors(older / "weights.safetensors").keys()
    assert any(name.startswith("teacher.") for name in names)
    assert any(name.startswith("queue.") for name in names)
    with toy.registered():
        again = tuwen.load(older)
    assert torch.equal(again.embed(images=pictures).images, model.embed(images=pictures).images)
    now = checkpoint.load_tensors(run / "weights.safetensors")
    assert not any(name.startswith(("teacher.", "queue.")) for name in now)


def test_parts_that_were_called_otherwise_are_found():
    class Renamed(nn.Module):
        renamed: ClassVar[dict[str, str]] = {"shared_head": "head", "other": "first", "absent": "header"}

        def __init__(self):
            super().__init__()
            self.shared_head, self.first, self.other = (nn.Linear(1, 1, bias=False) for _ in range(3))

    a, b, c = torch.zeros(1), torch.ones(1), torch.ones(2)
    older = {"head.weight": a, "header.weight": b, "first.weight": c}
    now = {"shared_head.weight": a, "header.weight": b, "first.weight": c, "other.weight": c}
    assert checkpoint.in_new_names(older, Renamed()) == now
    assert "other.weight" not in checkpoint.in_new_names(older, Renamed(), split=False)
    newer = {"head.weight": a, "shared_head.weight": b, "other.weight": b}  # a task's head beside it
    assert checkpoint.in_new_names(newer, Renamed()) == newer


@pytest.mark.parametrize("shared", [True, False])
def test_an_older_run_of_cookie_goes_on_where_its_parts_were_renamed(tmp_path, monkeypatch, shared):
    """Its head was called as a task's head is now; its control arm shared the projection."""
    corpus, run = "scenes:count=24,side=32", tmp_path / "run"
    changes = {"train.steps": 2, "train.batch_size": 8, "train.threads": 1, "data.workers": 0, "model.layers": 1}
    changes |= {"train.precision": "float32", "model.shared": shared, "train.checkpoint_every": 1}
    config = RunConfig.of("cookie", "tiny", corpus, changes=changes)
    stop_after(monkeypatch, 1)
    with pytest.raises(Interrupted):
        loop.train(config, run, quiet=True)
    monkeypatch.undo()
    plain = tmp_path / "plain"
    shutil.copytree(run, plain)
    state = run / "state/step-00000001"
    for path in (state / "weights.safetensors", run / "weights.safetensors", state / "optimizer.safetensors"):
        tensors = checkpoint.load_tensors(path)
        own = "text_projection.weight"
        tensors = {name.replace("shared_head.", "head."): t for name, t in tensors.items() if not name.endswith(own)}
        path.unlink()
        checkpoint.save_tensors(path, tensors)
    words = ["a red circle"]
    if shared:
        again, expected = loop.resume(run, quiet=True), loop.resume(plain, quiet=True)
        weights, right = (checkpoint.load_tensors(path / "weights.safetensors") for path in (again, expected))
        assert all(torch.equal(weights[name], right[name]) for name in right)
    else:
        with pytest.raises(UserError, match=r"without a text_projection.weight of its own.*--init") as error:
            loop.resume(run, quiet=True)
        assert "\n" not in str(error.value)
        system = tuwen.load(run).system
        assert torch.equal(system.text_projection.weight, system.projection.weight)
    assert tuwen.load(run).embed(texts=words).texts.isfinite().all()
