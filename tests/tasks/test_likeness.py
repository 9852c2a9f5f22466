"""Pictures like pictures, texts like texts, across languages: by hand, by scikit-learn, by counting every order."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from tests.tasks.stub import DualStub, Pairs, Table, ready
from tuwen.data.corpus import Relevance
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.systems.system import System
from tuwen.tasks import cross_lingual, image_retrieval, text_retrieval
from tuwen.tasks.likeness import average_precision, chance_of, cosines, measure_likeness, sharing, words_alone


def test_average_precision_is_scikit_learn_s():
    generator = torch.Generator().manual_seed(0)
    scores, right = torch.rand(20, 15, generator=generator), torch.rand(20, 15, generator=generator) < 0.3
    expected = [average_precision_score(r, s) if r.any() else 0.0 for r, s in zip(right, scores, strict=True)]
    torch.testing.assert_close(average_precision(scores, right), torch.tensor(expected, dtype=torch.float64))


def test_by_hand():
    """Items 0, 1, 2, 3; groups {0, 1}, {2, 3} and 0 with 2. Query 1 finds 0 second: AP 1/2, not at 1 but at 5."""
    truth = sharing([[7, 9], [7], [8, 9], [8]])
    assert [truth.images_of(k).tolist() for k in range(4)] == [[1, 2], [0], [0, 3], [2]]
    scores = torch.tensor(
        [[9.0, 3, 2, 1], [2, 9, 3, 1], [1, 2, 9, 3], [1, 2, 3, 9]]  # each nearest to itself, which never counts
    )
    marks = measure_likeness(lambda a, b: scores[a:b], truth, alone=True)
    ap = [1, 1 / 2, (1 + 2 / 3) / 2, 1]  # query 2: 3 first, 0 third
    assert marks["map"] == pytest.approx(100 * sum(ap) / 4)
    assert [marks["r1"], marks["r5"]] == [75, 100]
    for budget in (1, 8, 100):
        assert measure_likeness(lambda a, b: scores[a:b], truth, True, budget) == marks


@pytest.mark.parametrize("alone", [True, False])
def test_chance_is_the_mean_over_every_order(alone):
    truth = Relevance.of(5, [[1, 2], [3], [], [4, 0, 1]])
    found: dict[str, list[float]] = {"map": [], "r1": []}
    for query in range(4):
        items = [k for k in range(5) if not (alone and k == query)]
        right = set(truth.images_of(query).tolist()) - ({query} if alone else set())
        if right:
            orders = list(itertools.permutations(items))
            scores = torch.tensor([[-float(order.index(k)) for k in items] for order in orders])
            hits = torch.tensor([[k in right for k in items]] * len(orders))
            found["map"].append(float(average_precision(scores, hits).mean()))
            found["r1"].append(np.mean([order[0] in right for order in orders]))
    expected = chance_of(truth, alone)
    assert expected["map"] == pytest.approx(100 * np.mean(found["map"]))
    assert expected["r1"] == pytest.approx(100 * np.mean(found["r1"]))


def test_groups_of_queries_and_items():
    truth = sharing([[1], [2, 3], [4]], [[3], [1, 2], [5]])
    assert [truth.images_of(k).tolist() for k in range(3)] == [[1], [0, 1], []]
    assert truth.image_count == 3


def test_words_alone_by_hand():
    """Items "red cat", "cat": idf of red is ln(3/2) + 1, of cat 1 (smoothed); 猫 is a word by itself."""
    idf = math.log(3 / 2) + 1
    rows = words_alone(["red", "the cat", "dog"], ["red cat", "cat"])
    long = math.hypot(idf, 1)
    torch.testing.assert_close(rows(0, 3), torch.tensor([[idf / long, 0], [1 / long, 1], [0, 0]]))
    assert words_alone(["黑猫"], ["白猫", "狗"])(0, 1)[0].gt(0).tolist() == [True, False]
    assert words_alone(["!"], ["?", "!"])(0, 1).tolist() == [[0, 0]]


class Vectors(System):
    """Picture k is the vector `pictures[k]`, text k the vector `texts[k]`."""

    config = None

    def __init__(self, pictures=None, texts=None):
        super().__init__()
        self.pictures, self.texts = pictures, texts

    def encode_images(self, images):
        return Encoded(self.pictures[images.pixels[:, 2, 0, 0].long()])

    def encode_texts(self, texts):
        return Encoded(self.texts[texts.ids[:, 0]])


CIRCLE = torch.tensor([[math.cos(a), math.sin(a)] for a in (0.0, 0.1, 1.5, 1.7, 3.0)])


def corpus(**changes) -> Pairs:
    rows = [{"en": ["a 0", "b 1"]}, {"en": ["a 2"], "zh": ["甲 3"]}, {"en": ["c 1"]}, {"zh": ["乙 4"]}, {"en": ["d 0"]}]
    return Pairs(rows, **changes)


def test_pictures_of_a_class():
    """0 and 1 are of one class and neighbours; 2 and 3 are, and are; 4 is alone, and no query."""
    columns = [{"cls": name} for name in ("x", "x", "y", "y", "z")]
    found = image_retrieval.evaluate_image_retrieval(ready(Vectors(CIRCLE), ["en"]), corpus(columns=columns))
    assert found["vectors"] == {"r1": 100, "r5": 100, "r10": 100, "map": 100}
    assert (found["images"], found["queries"], found["alike"]) == (5, 4, "of one class")
    assert found["chance"]["r1"] == pytest.approx(25)
    swapped = CIRCLE[[0, 2, 1, 3, 4]]
    found = image_retrieval.evaluate_image_retrieval(ready(Vectors(swapped), ["en"]), corpus(columns=columns))
    # 0 has 2, then 1: second; 1 has 3 first, then 4, then 2, then 0; so has 2 (0 first, 1, 3: third); 3: 1, 4, 2
    assert found["vectors"]["r1"] == 0
    order = (swapped @ swapped.T).fill_diagonal_(-2).argsort(1, descending=True)
    places = [(order[q] == a).nonzero().item() for q, a in ((0, 1), (1, 0), (2, 3), (3, 2))]
    assert found["vectors"]["map"] == pytest.approx(100 * np.mean([1 / (1 + place) for place in places]))


def test_pictures_that_a_text_is_right_for_and_colours_alone():
    """Rows 0 and 4 show one text; the colours of rows 0 and 4 are neighbours no more than others."""
    texts = [{"en": ["same 1"]}, {"en": ["b 2"]}, {"en": ["c 3"]}, {"en": ["same 1"]}]
    found = image_retrieval.evaluate_image_retrieval(ready(Vectors(CIRCLE), ["en"]), Pairs(texts))
    assert (found["queries"], found["alike"]) == (2, "a text is right for both")
    order = (CIRCLE[:4] @ CIRCLE[:4].T).fill_diagonal_(-2).argsort(1, descending=True)
    places = [(order[q] == a).nonzero().item() for q, a in ((0, 3), (3, 0))]
    assert found["vectors"]["map"] == pytest.approx(100 * np.mean([1 / (1 + place) for place in places]))
    with pytest.raises(UserError, match="no two pictures are alike"):
        image_retrieval.evaluate_image_retrieval(ready(Vectors(CIRCLE), ["en"]), Pairs(texts[:3]))


def test_broken_pictures_are_left_out():
    columns = [{"cls": name} for name in ("x", "x", "y", "y", "z")]
    predictor = ready(Vectors(CIRCLE), ["en"])
    found = image_retrieval.evaluate_image_retrieval(predictor, corpus(columns=columns, broken=[2]))
    assert (found["broken"], found["images"], found["queries"]) == ({"truncated": 1}, 4, 2)


def test_texts_of_a_picture():
    """Two texts of picture 0, the rest alone; numbers of texts are their vectors. zh has one text a picture."""
    predictor = ready(Vectors(texts=CIRCLE), ["en", "zh"])
    found = text_retrieval.evaluate_text_retrieval(predictor, corpus())
    assert set(found["languages"]) == {"en"}
    assert "zh" in found["note"]
    marks = found["languages"]["en"]
    assert (marks["texts"], marks["queries"]) == (5, 2)
    # "a 0" is nearest to "d 0" (the same vector, later) and then "b 1", "c 1": AP 1/2; "b 1" to "c 1" then "a 0"
    assert marks["vectors"]["map"] == pytest.approx(50)
    assert marks["chance"]["r1"] == pytest.approx(25)


def test_a_language_against_another():
    predictor = ready(Vectors(texts=CIRCLE), ["en", "zh"])
    found = cross_lingual.evaluate_cross_lingual(predictor, corpus())["pairs"]
    assert set(found) == {"en-zh", "zh-en"}
    assert found["en-zh"]["queries"] == 1  # "a 2", of the one picture that has both
    assert found["en-zh"]["vectors"]["r1"] == 100  # 1.5 is nearest to 1.7
    assert found["zh-en"]["chance"]["r1"] == pytest.approx(20)
    with pytest.raises(UserError, match="two languages"):
        cross_lingual.evaluate_cross_lingual(predictor, corpus(), languages=["en"])


def test_systems_without_vectors_are_refused():
    class Blind(DualStub):
        def encode_images(self, images):
            return Encoded(states={"last": torch.zeros(len(images), 1, 1)})

        def encode_texts(self, texts):
            return Encoded(states={"last": torch.zeros(len(texts), 1, 1)})

    predictor = ready(Blind(Table(None)), ["en"])
    with pytest.raises(UserError, match="no vectors of pictures"):
        image_retrieval.evaluate_image_retrieval(predictor, corpus())
    with pytest.raises(UserError, match="no vectors of texts"):
        text_retrieval.evaluate_text_retrieval(predictor, corpus())


def test_cosines_are_of_any_length():
    torch.testing.assert_close(cosines(CIRCLE * 3, CIRCLE / 2)(1, 3), CIRCLE[1:3] @ CIRCLE.T)
