"""Parts of corpora and mixtures: rows, truth, fingerprints, and which row of a mixture is seen when."""

from collections import Counter

import numpy as np
import pytest

from tests.data.pairs import row, with_pictures, write
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.corpora.scenes.moving import Moving
from tuwen.data.open import open_corpus, splits_of
from tuwen.data.order import MixedOrder, Order, order_of
from tuwen.data.subset import MixedCorpus, Subset, by_ids, fraction
from tuwen.errors import UserError


class TestSubset:
    def test_rows_texts_and_truth(self):
        base = Scenes("train", count=20, side=32)
        part = Subset(base, [7, 3, 11])
        assert [part.record(k).id for k in range(3)] == [base.record(k).id for k in (7, 3, 11)]
        assert (part.image(1) == base.image(3)).all()
        gallery = part.gallery("en")
        slow = [[k for k, scene in enumerate((7, 3, 11)) if _true(base, scene, text)] for text in gallery.texts]
        assert [gallery.relevance.images_of(t).tolist() for t in range(len(gallery.texts))] == slow
        with pytest.raises(IndexError):
            part.record(3)

    def test_dropped_texts_take_their_claims_along(self):
        base = Scenes("train", count=5, side=32, clicks=True)
        texts = base.record(2).texts
        part = Subset(base, [2], {2: {texts["en"][0]}})
        record = part.record(0)
        assert list(record.texts["en"]) == list(texts["en"][1:])
        assert record.columns["claims"] == base.record(2).columns["claims"][1:]
        assert record.columns["clicks"] == base.record(2).columns["clicks"][1:]

    def test_fingerprint_follows_rows_texts_and_rewriting_only(self):
        base = Scenes("train", count=9, side=32)
        text = base.record(0).texts["en"][0]
        made = [
            Subset(base, [0, 1]),
            Subset(base, [1, 0]),
            Subset(base, [0, 2]),
            Subset(base, [0, 1], {0: {text}}),
            Subset(base, [0, 1], None, str.upper, "upper"),
            Subset(Scenes("train", count=9, side=32, seed=1), [0, 1]),
        ]
        assert len({one.fingerprint for one in made}) == len(made)
        assert Subset(base, np.array([0, 1]), {}).fingerprint == made[0].fingerprint

    def test_fractions_are_nested_and_drawn_by_picture(self, tmp_path):
        base = Scenes("train", count=400, side=32)
        small, large = fraction(base, 0.2), fraction(base, 0.5)
        assert set(small.rows) <= set(large.rows)
        assert abs(len(large) - 200) < 40
        assert set(fraction(base, 0.5, seed=1).rows) != set(large.rows)
        assert len(fraction(base, 1.0)) == 400
        rows = [row(f"{n}{k}", image=f"images/{n}.png") for n in (1, 2, 3) for k in "ab"]
        table = open_corpus(write(with_pictures(tmp_path), *rows), "train")
        for seed in range(9):
            try:
                counts = Counter(table.image_ids()[fraction(table, 0.5, seed).rows].tolist())
            except UserError:
                continue
            assert set(counts.values()) == {2}
        for wrong in (0, -1, 1.5):
            with pytest.raises(UserError, match="fraction"):
                fraction(base, wrong)

    def test_by_ids(self):
        base = Scenes("train", count=5, side=32)
        corpora = {"train": base, "val": Scenes("val", count=3, side=32)}
        ids = [base.record(row).id for row in (3, 1)]
        found = by_ids(corpora, ids)
        assert list(found) == ["train"]
        assert found["train"].rows.tolist() == [1, 3]
        with pytest.raises(UserError, match=r"1 of 2 ids are of no row, e.g. 'none'"):
            by_ids(corpora, [ids[0], "none"])


def _true(base, scene: int, text) -> bool:
    from tuwen.data.corpora.scenes.truth import holds

    rows = (7, 3, 11)
    record = base.record(rows[text.row])
    return holds(record.columns["claims"][text.place], base.scene(scene))


class TestMixture:
    def test_rows_of_all_parts(self):
        first, second = Scenes("train", count=4, side=32), Scenes("train", count=3, side=32, seed=5, languages="ja")
        both = MixedCorpus([first, second], [1, 2])
        assert (len(both), both.languages) == (7, ("en", "zh", "ja"))
        assert both.record(5).id == f"scenes/{second.record(1).id}"
        assert (both.image(3) == first.image(3)).all()
        assert (both.image(4) == second.image(0)).all()
        others = [
            MixedCorpus([first, second], [1, 3]),
            MixedCorpus([second, first], [1, 2]),
            MixedCorpus([first, first], [1, 2]),
        ]
        assert len({both.fingerprint, *(one.fingerprint for one in others)}) == 4
        assert MixedCorpus([first, second], [1, 2]).fingerprint == both.fingerprint

    def test_refused(self):
        part = Scenes("train", count=4, side=32)
        for parts, weights, what in (
            ([part], [0.0], "weights are positive"),
            ([part, part], [1.0, float("nan")], "weights are positive"),
            ([part, part], [float("inf"), 1.0], "weights are positive"),
            ([part], [1, 2], "give each corpus one"),
            ([], [], "mixture of 0"),
            ([Scenes("train", count=0, side=32)], [1], "no rows to mix"),
        ):
            with pytest.raises(UserError, match=what):
                MixedCorpus(parts, weights)

    def test_wrapped_clips_stay_clips(self):
        clips = Moving("train", count=4, side=16, frames=3)
        for wrapped, place, inner in ((Subset(clips, [2, 0]), 1, 0), (MixedCorpus([clips, clips], [1, 2]), 5, 1)):
            assert wrapped.frames == 3
            assert (wrapped.clip(place) == clips.clip(inner)).all()
            assert len(wrapped.shown(place)) == 3
        assert open_corpus("mix:moving:count=40=1", "train").frames == 6
        with pytest.raises(UserError, match="as many frames and pictures a row"):
            MixedCorpus([clips, Scenes("train", count=4, side=16)], [1, 1])

    def test_by_location(self):
        where = "mix:scenes:count=6,side=32=3;scenes:count=4,side=32,seed=1=1"
        corpus = open_corpus(where, "train")
        assert (len(corpus), corpus.weights) == (10, (3.0, 1.0))
        assert splits_of(where) == ("test", "train", "val")
        with pytest.raises(UserError, match="'scenes' is no corpus with its weight"):
            open_corpus("mix:scenes", "train")
        with pytest.raises(UserError, match="no split 'x'; there are: test, train, val"):
            open_corpus(where, "x")


class TestMixedOrder:
    def rows(self, order, epochs):
        steps = range(epochs * order.steps_per_epoch)
        return np.concatenate([order.batch(step) for step in steps])

    def test_weights_hold_in_every_epoch(self):
        order = MixedOrder([30, 10], [1, 1], 4, seed=3)
        for epoch in range(5):
            seen = order.permutation(epoch, np.arange(40))
            assert (seen < 30).sum() == 20
            assert (seen >= 30).sum() == 20

    def test_every_row_comes_before_any_comes_again(self):
        order = MixedOrder([30, 10], [1, 1], 4, seed=3)
        seen = np.concatenate([np.sort(order.permutation(epoch, np.arange(40))) for epoch in range(6)])
        counts = np.bincount(seen, minlength=40)
        assert set(counts[:30]) == {4}  # 6 epochs x 20 places / 30 rows
        assert set(counts[30:]) == {12}
        for lengths, weights in (([30, 10], [1, 1]), ([9, 40, 11], [5, 1, 3])):
            order = MixedOrder(lengths, weights, 4, seed=3)
            seen = np.concatenate([order.permutation(epoch, np.arange(order.rows)) for epoch in range(6)])
            for end, length in zip(np.cumsum(lengths), lengths, strict=True):
                own = seen[(seen >= end - length) & (seen < end)]
                for start in range(0, len(own) - length + 1, length):
                    assert sorted(own[start : start + length]) == list(range(end - length, end))

    def test_every_batch_has_the_shares(self):
        order = MixedOrder([60, 40, 20], [3, 2, 1], 12, seed=0)
        for step in range(30):
            assert np.histogram(order.batch(step), [0, 60, 100, 120])[0].tolist() == [6, 4, 2]

    def test_it_is_arithmetic_of_seed_and_step(self):
        first, again, other = (MixedOrder([9, 7, 5], [1, 2, 3], 5, seed) for seed in (1, 1, 2))
        assert (self.rows(first, 3) == self.rows(again, 3)).all()
        assert (self.rows(first, 3) != self.rows(other, 3)).any()
        assert (first.permutation(0, np.arange(21)) != first.permutation(1, np.arange(21))).any()
        ranks = [first.batch(2)[first.slice_of(rank, 5)] for rank in range(5)]
        assert np.concatenate(ranks).tolist() == first.batch(2).tolist()

    def test_places_are_as_near_to_the_weights_as_can_be(self):
        assert MixedOrder([5, 5], [2, 1], 1, 0).places.tolist() == [7, 3]
        with pytest.raises(UserError, match="gives its corpus no row"):
            MixedOrder([5, 5], [1000, 1], 1, 0)

    def test_which_order_a_corpus_has(self):
        part = Scenes("train", count=4, side=32)
        assert type(order_of(part, 4, 2, 0)) is Order
        assert isinstance(order_of(MixedCorpus([part, part], [1, 1]), 8, 2, 0), MixedOrder)
        with pytest.raises(UserError, match=r"set data\.texts to one"):
            order_of(MixedCorpus([part, part], [1, 1]), 20, 2, 0)
