"""Clips that move: pure functions of their row, what is said is what is drawn, and every movement has its mirror."""

import pytest
import torch

from tuwen.data.corpora.scenes.moving import MOVEMENTS, Moving, make_movement
from tuwen.data.loader import DataConfig, Loader, images_of
from tuwen.data.open import open_corpus, splits_of
from tuwen.data.order import Order
from tuwen.data.shards import write_shards
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError
from tuwen.systems.system import Needs, Reads


def test_a_row_is_a_function_of_seed_split_and_row_alone():
    one, other = Moving(count=5, side=32), Moving(count=50, side=32)
    assert torch.equal(one.clip(3), other.clip(3))
    assert one.record(3) == other.record(3)
    assert one.fingerprint != other.fingerprint
    assert not torch.equal(one.clip(3), Moving(count=5, side=32, seed=1).clip(3))
    assert one.clip(3).shape == (6, 3, 32, 32)
    assert splits_of("moving") == ("train", "val", "test")
    opened = open_corpus("moving:count=5,side=32,frames=4", "train")
    assert opened.clip(0).shape == (4, 3, 32, 32)


@pytest.mark.parametrize("kind", MOVEMENTS)
def test_what_is_said_is_what_is_drawn(kind):
    made = [make_movement(0, index, ("cat", "dog")) for index in range(400)]
    found = [movement for movement in made if movement.kind == kind]
    assert len(found) > 20
    for movement in found:
        first, last = (movement.scene(time).objects for time in (0.0, 1.0))
        if kind in ("appearing", "disappearing"):
            assert (len(first), len(last)) == ((0, 1) if kind == "appearing" else (1, 0))
            continue
        (a,), (b,) = first, last
        moved = {"left": a.x - b.x, "right": b.x - a.x, "up": a.y - b.y, "down": b.y - a.y}
        moved |= {"growing": b.size - a.size, "shrinking": a.size - b.size}
        assert moved[kind] > 0.3
        for item in (a, b):
            assert item.size / 2 <= item.x + 1e-9 <= 1 - item.size / 2 + 2e-9
            assert item.size / 2 <= item.y + 1e-9 <= 1 - item.size / 2 + 2e-9


def test_captions_say_thing_movement_and_ground_in_both_languages():
    corpus = Moving(count=40, side=16)
    for row in range(40):
        record = corpus.record(row)
        english, chinese = MOVEMENTS[record.columns["movement"]]
        assert english in record.texts["en"][0]
        assert chinese in record.texts["zh"][0]
        assert record.columns["thing"] in record.texts["en"][0]
        assert record.columns["background"] in record.texts["en"][0]


def test_a_caption_belongs_to_every_clip_it_is_true_of():
    corpus = Moving("test", 120, side=16, things=2)
    gallery = corpus.gallery("en")
    for text in range(len(gallery.texts)):
        said = gallery.texts[text].text
        right = [k for k, row in enumerate(gallery.rows) if corpus.record(row).texts["en"][0] == said]
        assert gallery.relevance.images_of(text).tolist() == right


def test_loader_and_evaluation_give_frames_with_their_rows():
    corpus = Moving(count=6, side=16, frames=3)
    texts = [text for row in range(6) for told in corpus.record(row).texts.values() for text in told]
    tokenizer = Tokenizer.train(texts, size=200)
    config = DataConfig(augment="none", workers=0)
    batch = Loader(corpus, tokenizer, Order(6, 4, 0), config, Reads(clips=True), Needs(), 0, 16, 32)[0]
    assert batch.images.owner.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    for row in range(4):
        clip = batch.images.select(torch.tensor([row])).pixels
        assert torch.equal(clip, corpus.clip(int(batch.index[row])))
    images, kept, _ = images_of(corpus, [4, 1], 16)
    assert kept == [4, 1]
    assert images.owner.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(images.pixels[3:], corpus.clip(1))
    cropped = Loader(corpus, tokenizer, Order(6, 4, 0), DataConfig(workers=0), Reads(clips=True), Needs(), 0, 16, 32)[0]
    still = Moving(count=6, side=16, frames=3)
    still.clip = lambda row: still.image(row)[None].expand(3, -1, -1, -1)  # frames alike stay alike: one crop a clip
    batch = Loader(still, tokenizer, Order(6, 4, 0), DataConfig(workers=0), Reads(clips=True), Needs(), 0, 16, 32)[0]
    pixels = batch.images.pixels.view(4, 3, 3, 16, 16)
    assert torch.equal(pixels[:, 0], pixels[:, 1])
    assert torch.equal(pixels[:, 0], pixels[:, 2])
    assert cropped.images.owner.tolist() == batch.images.owner.tolist()


def test_refusals(tmp_path):
    corpus = Moving(count=4, side=16)
    tokenizer = Tokenizer.train(["a"], size=40)
    with pytest.raises(UserError, match="its rows are clips of 6 pictures"):
        Loader(corpus, tokenizer, Order(4, 4, 0), DataConfig(workers=0), Reads(), Needs(), 0, 16, 32)
    with pytest.raises(UserError, match="shards cannot hold"):
        write_shards({"train": corpus}, tmp_path / "built")
    for options in ("frames=1", "things=1", "side=2", "speed=3", "count=x"):
        with pytest.raises(UserError, match="moving"):
            open_corpus(f"moving:{options}", "train")
    with pytest.raises(UserError, match="no split 'all'"):
        open_corpus("moving", "all")
