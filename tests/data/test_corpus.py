"""The base of every corpus: identities, galleries, relevance, splits by hash."""

import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tuwen.data.corpus import Corpus, Record, Relevance, hashed_split, normalise, text_id


class Listed(Corpus):
    """A corpus of (picture identity, texts by language)."""

    name, split, fingerprint, languages = "listed", "test", "0", ("en", "zh")

    def __init__(self, *rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def record(self, row):
        image, texts = self.rows[row]
        return Record(str(row), texts, image)

    def image(self, row):
        return torch.zeros(3, 2, 2, dtype=torch.uint8)


def pairs(relevance) -> set[tuple[int, int]]:
    """(text, picture)."""
    return {(text, int(image)) for text in range(len(relevance)) for image in relevance.images_of(text)}


def test_normal_form():
    assert normalise(" ＡＢＣ　１２\t\nﬁ ") == "ABC 12 fi"
    assert text_id("Ａ dog") == text_id(" A  dog\n") != text_id("a dog")
    assert text_id(unicodedata.normalize("NFD", "é")) == text_id("é")


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_normal_form_is_settled(text):
    once = normalise(text)
    assert normalise(once) == once
    assert -(2**63) <= text_id(text) < 2**63


def test_gallery_by_hand():
    corpus = Listed(
        (7, {"en": ["a", "b"], "zh": ["狗"]}),
        (8, {"en": ["b"]}),
        (7, {"en": ["c", " a "], "zh": ["狗", "猫"]}),
        (9, {}),
    )
    gallery = corpus.gallery("en")
    assert gallery.rows == [0, 1, 3]
    assert [(text.text, text.row, text.place) for text in gallery.texts] == [("a", 0, 0), ("b", 0, 1), ("c", 2, 0)]
    assert pairs(gallery.relevance) == {(0, 0), (1, 0), (1, 1), (2, 0)}
    both = corpus.gallery()
    assert [text.text for text in both.texts] == ["a", "b", "狗", "c", "猫"]
    assert [text.place for text in both.texts] == [0, 1, 2, 0, 3]  # over languages, in the record's order
    assert pairs(corpus.gallery("zh").relevance) == {(0, 0), (1, 0)}


def test_a_limited_gallery_keeps_all_texts_of_its_pictures():
    corpus = Listed((1, {"en": ["a"]}), (2, {"en": ["b"]}), (3, {"en": ["a"]}), (1, {"en": ["b"]}))
    gallery = corpus.gallery(limit=2)
    assert gallery.rows == [0, 1]
    assert [text.text for text in gallery.texts] == ["a", "b"]
    assert pairs(gallery.relevance) == {(0, 0), (1, 0), (1, 1)}
    assert corpus.gallery(limit=0).rows == []


@given(
    st.lists(st.tuples(st.integers(0, 4), st.lists(st.sampled_from("abcd"), max_size=3)), max_size=8), st.integers(0, 5)
)
def test_gallery_against_the_slow_way(rows, limit):
    corpus = Listed(*((image, {"en": texts}) for image, texts in rows))
    gallery = corpus.gallery("en", limit)
    images = list(dict.fromkeys(image for image, _ in rows))[:limit]
    assert [rows[row][0] for row in gallery.rows] == images
    texts = list(dict.fromkeys(text for image, texts in rows if image in images for text in texts))
    assert [text.text for text in gallery.texts] == texts
    truth = {(texts.index(text), images.index(image)) for image, own in rows if image in images for text in own}
    assert pairs(gallery.relevance) == truth
    assert {(image, text) for text, image in truth} == pairs(gallery.relevance.transpose())


def test_relevance_by_hand():
    relevance = Relevance.of(4, [[2], [0, 3], []])
    assert relevance.start.tolist() == [0, 1, 3, 3]
    assert [relevance.images_of(t).tolist() for t in range(3)] == [[2], [0, 3], []]
    other = relevance.transpose()
    assert [other.images_of(i).tolist() for i in range(4)] == [[1], [], [0], [1]]
    assert other.image_count == 3
    assert len(Relevance.of(0, []).transpose()) == 0


@pytest.mark.parametrize("kind", [str, lambda n: f"images/{n}.jpg", lambda n: f"商品{n}"])
def test_a_tenth_is_test(kind):
    splits = [hashed_split(kind(n)) for n in range(5000)]
    assert set(splits) == {"train", "test"}
    assert abs(np.mean([split == "test" for split in splits]) - 0.1) < 0.02
    assert splits[:3] == [hashed_split(kind(n)) for n in range(3)]
