"""The loader against a corpus in memory: the same batch whatever the processes and workers, substitutes included."""

import pickle

import numpy as np
import pytest
import torch

from tuwen.data import needs as needs_module
from tuwen.data.batch import Batch
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.corpus import BrokenImage, Corpus, Record, text_id
from tuwen.data.fit import Fit, on_whole
from tuwen.data.images import resize
from tuwen.data.loader import DataConfig, Loader, image_batches, images_of, order_rows
from tuwen.data.needs import check_needs, check_reads, every_text, sentences
from tuwen.data.order import Order
from tuwen.data.text import Tokenizer
from tuwen.data.views import CHANGES, PictureViews, View
from tuwen.errors import UserError
from tuwen.systems.system import Needs, Reads

LENGTH = 16


class Memory(Corpus):
    """Pictures drawn by row number; some broken, some without texts."""

    name, split, languages, fingerprint = "memory", "train", ("zh", "en", "de"), "memory"

    def __init__(self, rows=23, broken=(), mute=()):
        self.rows, self.broken, self.mute = rows, frozenset(broken), frozenset(mute)

    def __len__(self):
        return self.rows

    def record(self, row):
        texts = {"zh": [f"第{row}张。", f"图{row}"], "en": [f"picture {row}", f"number {row}", f"a {row}. b {row}!"]}
        if row % 3 == 0:
            texts["de"] = [f"Bild {row}"]
        if row in self.mute:
            texts = {"zh": ["", "  "]}
        columns = {"noise": row / 10, "box": [row, 1, 2, 3], "name": "cat"}
        return Record(f"r{row}", texts, image_id=1000 + row // 2, columns=columns)

    def image(self, row):
        if row in self.broken:
            raise BrokenImage("truncated", f"row {row} ends early")
        generator = np.random.default_rng(row)
        return torch.from_numpy(generator.integers(0, 256, (3, 20 + row % 5, 24), dtype=np.uint8))


TOKENIZER = Tokenizer.train([t for row in range(40) for texts in Memory(60).record(row).texts.values() for t in texts])


def make(corpus=None, batch_size=6, seed=5, asked=None, reads=None, pictures=1, **config):
    corpus = corpus or Memory()
    config = DataConfig(**({"workers": 0} | config))
    order = Order(order_rows(corpus, config, asked or Needs()), batch_size, seed)
    reads, asked = reads or Reads(), asked or Needs()
    return Loader(corpus, TOKENIZER, order, config, reads, asked, seed, side=16, length=LENGTH, pictures=pictures)


def tensors(value):
    """Every tensor of a batch by its path."""
    if isinstance(value, torch.Tensor):
        return {"": value}
    if hasattr(value, "__dataclass_fields__"):
        value = vars(value)
    if isinstance(value, dict):
        return {f"{k}.{path}": t for k, item in value.items() for path, t in tensors(item).items()}
    return {}


def same(one: Batch, other: Batch):
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


VIEWS = {"second": View(12, crop="own"), "plain": View(16, augment=False, crop="none"), "codes": View(8)}
RICH = {"views": VIEWS, "texts": 2, "sentences": True, "languages": 2}


def test_a_batch_holds_what_its_rows_hold():
    corpus = Memory()
    loader = make(corpus, augment="none", asked=Needs(columns=("noise", "box")))
    batch = loader[2]
    assert batch.index.tolist() == Order(23, 6, 5).batch(2).tolist()
    assert batch.images.pixels.dtype == torch.uint8
    for k, row in enumerate(batch.index.tolist()):
        record = corpus.record(row)
        assert torch.equal(batch.images.pixels[k], resize(corpus.image(row), 16))
        assert batch.image_id[k] == record.image_id
        language = corpus.languages[batch.texts.language[k]]
        text = next(t for t in record.texts[language] if text_id(t) == batch.text_id[k])
        ids, mask = TOKENIZER.encode([text], LENGTH)
        assert batch.texts.ids[k][batch.texts.mask[k]].tolist() == ids[mask].tolist()
        assert batch.columns["noise"][k] == torch.tensor(row / 10)
        assert batch.columns["box"][k].tolist() == [row, 1, 2, 3]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    corpus = Memory(broken=(3, 4, 11), mute=(7,))
    alone, helped = make(corpus, asked=Needs(**RICH)), make(corpus, asked=Needs(**RICH), workers=workers)
    for one, other in zip(alone.run(0, 8), helped.run(0, 8), strict=True):
        same(one, other)
    assert alone.skipped == helped.skipped
    assert {3, 4, 7, 11} >= set(alone.skipped) >= {3, 4}
    assert alone.texts == helped.texts > 0


def test_a_pickled_loader_gives_the_same():
    """As a spawned worker has it."""
    loader = make(Memory(broken=(3,)), asked=Needs(**RICH))
    copy = pickle.loads(pickle.dumps(loader))
    for step in (0, 5, 6):
        same(loader[step], copy[step])


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_processes_together_make_the_global_batch(world):
    corpus = Memory(broken=(0, 5, 9), mute=(2,))
    asked = Needs(views={"second": View(12, crop="own")}, columns=("noise",))
    whole = [make(corpus, asked=asked)[step] for step in range(5)]
    ranks = [list(make(corpus, asked=asked).run(0, 5, rank, world)) for rank in range(world)]
    for step, batch in enumerate(whole):
        parts = [rank[step] for rank in ranks]
        for field in ("image_id", "text_id", "index"):
            assert torch.equal(torch.cat([getattr(p, field) for p in parts]), getattr(batch, field))
        assert torch.equal(torch.cat([p.images.pixels for p in parts]), batch.images.pixels)
        assert torch.equal(torch.cat([p.images.views["second"] for p in parts]), batch.images.views["second"])
        tokens = [t.texts.ids[k][t.texts.mask[k]].tolist() for t in parts for k in range(len(t))]
        assert tokens == [ids[mask].tolist() for ids, mask in zip(batch.texts.ids, batch.texts.mask, strict=True)]


def test_to_resume_takes_the_step_alone():
    corpus = Memory(broken=(1, 2))
    through = list(make(corpus).run(0, 9))
    for start in (1, 4, 8):
        for expected, batch in zip(through[start:], make(corpus).run(start, 9), strict=True):
            same(expected, batch)


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(3)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(make().run(0, 2))
    list(make(workers=1).run(0, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])


def test_seeds_and_epochs_draw_anew():
    loader = make(Memory(6))  # one step an epoch: every batch holds the same rows
    first, second = loader[0], loader[1]
    assert sorted(first.index.tolist()) == sorted(second.index.tolist()) == list(range(6))
    by_row = [{int(r): p for r, p in zip(b.index, b.images.pixels, strict=True)} for b in (first, second)]
    assert all(not torch.equal(by_row[0][row], by_row[1][row]) for row in range(6))
    same(first, make(Memory(6))[0])
    other = make(Memory(6), seed=6)[0]
    assert not torch.equal(other.images.pixels, first.images.pixels)


def test_a_broken_row_is_replaced_by_a_whole_one_and_listed():
    corpus = Memory(broken=(3, 8))
    loader = make(corpus, augment="none")
    seen = [row for step in range(30) for row in loader[step].index.tolist()]
    assert set(seen) == set(range(23)) - {3, 8}
    assert loader.skipped == {row: f"truncated: row {row} ends early" for row in (3, 8)}
    whole = make(Memory(), augment="none")
    for step in range(6):  # rows that can be used stand where they stood
        kept = [(a, b) for a, b in zip(loader[step].index.tolist(), whole[step].index.tolist(), strict=True) if a != b]
        assert {row for _, row in kept} <= {3, 8}


def test_substitutes_differ_between_epochs():
    loader = make(Memory(12, broken=(3,)), batch_size=12)
    order = loader.order
    found = {int(loader[epoch].index[order.batch(epoch).tolist().index(3)]) for epoch in range(12)}
    assert len(found) > 3


@pytest.mark.parametrize("workers", [0, 1])
def test_stop_at_a_broken_row_names_it_in_one_line(workers):
    loader = make(Memory(broken=(3,)), on_bad="stop", workers=workers)
    with pytest.raises(
        UserError, match=r"^corpus memory, split train, row 3 \('r3'\): truncated: row 3 ends early; .*$"
    ):
        list(loader.run(0, 6))


def test_a_corpus_of_broken_rows_stops():
    with pytest.raises(UserError, match=r"none of 50 rows drawn can be used.*ends early"):
        make(Memory(broken=range(23)))[0]


def test_languages_and_texts_are_drawn_evenly():
    loader = make(Memory(6), augment="none")
    languages, texts = np.zeros(3), {}
    for step in range(300):
        batch = loader[step]
        for row, language, text in zip(batch.index, batch.texts.language, batch.text_id, strict=True):
            if row % 3:
                languages[language] += 1
                texts.setdefault(int(language), []).append((int(row), int(text)))
    assert abs(languages[0] / languages.sum() - 0.5) < 0.05  # two languages, whatever number of texts each has
    assert languages[2] == 0
    counts = [sum(1 for row, text in texts[1] if text == text_id(t)) for t in Memory().record(4).texts["en"]]
    assert min(counts) > 30


def test_chosen_languages_only():
    corpus = Memory(mute=(1,))
    loader = make(corpus, languages=("de",))
    for step in range(6):
        batch = loader[step]
        assert set(batch.texts.language.tolist()) == {2}  # the corpus's table, not that of the chosen
        assert all(row % 3 == 0 for row in batch.index.tolist())
    assert all("no text: row" in reason for reason in loader.skipped.values())
    with pytest.raises(UserError, match="no texts in fr; it has zh, en, de"):
        make(languages=("fr",))


def test_every_text_is_a_row():
    corpus = Memory(7, mute=(4,))
    loader = make(corpus, batch_size=1, texts="all")
    expected = [
        (row, text_id(text))
        for row in range(7)
        for texts in corpus.record(row).texts.values()
        for text in texts
        if text.strip()
    ]
    assert loader.order.rows == len(expected) == 6 * 5 + 3
    seen = [(int(b.index), int(b.text_id)) for b in loader.run(0, len(expected))]
    assert sorted(seen) == sorted(expected)


def test_views():
    corpus = Memory()
    views = {"second": View(16, crop="own"), "plain": View(10, augment=False, crop="none"), "codes": View(16)}
    loader = make(corpus, asked=Needs(views=views))
    batch = loader[0]
    made = batch.images.views
    assert torch.equal(made["codes"], batch.images.pixels)  # the same crop
    assert not torch.equal(made["second"], batch.images.pixels)
    for k, row in enumerate(batch.index.tolist()):
        assert torch.equal(made["plain"][k], resize(corpus.image(row), 10))


@pytest.mark.parametrize("augment", ["none", "crop", "crop+randaugment", "crop+colour"])
@pytest.mark.parametrize("side", [24, 48, 96])
def test_views_that_are_compared_have_one_geometry(augment, side):
    """A view of another size shows what the tower's shows, place by place, whatever was done to that."""
    how = PictureViews(48, {"codes": View(side)}, augment, (0.5, 1.0))
    corpus = Scenes("train", count=30, side=128)
    for row in range(30):
        made = how.made(corpus.image(row), (0, 0, row))
        if augment in CHANGES:
            assert torch.equal(made["codes"], resize(made[""], side))
            continue
        small, large = sorted(made.values(), key=lambda image: image.shape[1])
        apart = (resize(large, small.shape[1]).float() - small.float()).abs().mean()
        assert apart < 2, f"row {row}"  # grey levels; moved twice as far, up to 47


def test_a_view_keeps_the_fit_of_the_tower():
    wide = torch.arange(40 * 120).remainder(256).to(torch.uint8).view(1, 40, 120).expand(3, -1, -1)
    fit = Fit(16, shorter_side=20)
    made = PictureViews(fit, {"codes": View(8)}, "none", (0.5, 1.0)).made(wide, (0, 0, 0))
    assert torch.equal(made[""], fit(wide))
    assert torch.equal(made["codes"], Fit(8, shorter_side=10)(wide))


@pytest.mark.parametrize(
    ("view", "config", "message"),
    [
        (View(8, crop="own"), {"augment": "none"}, "data.augment: none makes the second view 'v'.*the same picture"),
        (View(8, crop="own"), {"crop_scale": (1.0, 1.0)}, "data.crop_scale: 1, 1 makes the second view 'v'"),
        (View(0), {}, "view 'v': 0 pixels"),
        (View(8, scale=(0.1, 0.5)), {}, "crop same, scale .* are no view"),
    ],
)
def test_views_that_cannot_be_are_refused_before_any_step(view, config, message):
    with pytest.raises(UserError, match=message):
        make(asked=Needs(views={"v": view}), **config)
    make(asked=Needs(views={"v": View(8, crop="own", scale=(0.2, 0.4))}), crop_scale=(1.0, 1.0))
    make(asked=Needs(views={"v": View(8, crop="own")}), crop_scale=(1.0, 1.0), augment="crop+randaugment")


def test_a_view_does_not_change_the_picture():
    assert torch.equal(
        make(asked=Needs(views={"second": View(12, crop="own")}))[0].images.pixels, make()[0].images.pixels
    )


def test_randaugment_follows_the_crop():
    plain, augmented = make()[0], make(augment="crop+randaugment")[0]
    assert torch.equal(plain.index, augmented.index)
    assert not torch.equal(plain.images.pixels, augmented.images.pixels)


def test_two_texts_a_row_belong_to_it_and_differ():
    corpus = Memory()
    loader = make(corpus, asked=Needs(texts=2))
    assert loader.remarks == (
        "corpus memory, split train: no text is drawn in de: no row has 2 texts in one language there",
    )
    for step in range(8):
        batch = loader[step]
        assert batch.texts.owner.tolist() == [k for k in range(6) for _ in range(2)]
        for k, row in enumerate(batch.index.tolist()):
            pair = [batch.texts.ids[2 * k + j][batch.texts.mask[2 * k + j]].tolist() for j in range(2)]
            spoken = corpus.languages[batch.texts.language[2 * k]]
            assert spoken != "de", "German has one text a row"
            own = corpus.record(row).texts[spoken]
            encoded = [ids[mask].tolist() for text in own for ids, mask in [TOKENIZER.encode([text], LENGTH)]]
            assert all(ids in encoded for ids in pair)
            assert pair[0] != pair[1]


def test_rows_without_enough_texts_are_counted_and_replaced():
    corpus = Memory(12)
    record = corpus.record
    corpus.record = lambda row: Record(f"r{row}", {"en": ["one"]}, row) if row % 4 == 0 else record(row)
    loader = make(corpus, asked=Needs(texts=2), languages=("en", "de"))
    where = "corpus memory, split train: "
    assert loader.remarks[0] == (
        f"{where}3 of 12 rows have no 2 texts in one language, which the system needs; others take their place"
    )
    assert all(row % 4 for step in range(6) for row in loader[step].index.tolist())
    assert set(loader.skipped) == {0, 4, 8}
    assert loader.skipped[4] == "no text: row 'r4' has fewer than 2 of a language in en, de"
    every = every_text(corpus, ("en", "de"), Needs(texts=2))
    assert [len(every), set(every[:, 0]) & {0, 4, 8}] == [9 * 3, set()]
    with pytest.raises(UserError, match="needs 2 texts in one language a row, and no row has them"):
        make(corpus, asked=Needs(texts=2), languages=("de",))
    said = make(corpus, asked=Needs(languages=2)).remarks
    assert said == (
        f"{where}3 of 12 rows have no texts in 2 languages, which the system needs; others take their place",
    )


def test_of_a_large_corpus_some_rows_are_looked_at(monkeypatch):
    monkeypatch.setattr(needs_module, "_LOOKED_AT", 5)
    corpus = Memory(21)
    seen = []
    corpus.record = lambda row: seen.append(row) or Record(f"r{row}", {"en": ["one", "two"][: 1 + row // 10]}, row)
    lines = check_needs(corpus, Needs(texts=2), ("en",))
    assert seen == [0, 5, 10, 15, 20]
    assert "2 of 5 rows looked at have no 2 texts" in lines[0]


def test_sentences_of_the_drawn_text():
    corpus = Memory(4)
    loader = make(corpus, batch_size=4, asked=Needs(sentences=True), languages=("en",))
    several = 0
    for step in range(10):
        batch = loader[step]
        pieces = batch.sentences
        for k, row in enumerate(batch.index.tolist()):
            text = next(t for t in corpus.record(row).texts["en"] if text_id(t) == batch.text_id[k])
            expected = [ids[mask].tolist() for s in sentences(text) for ids, mask in [TOKENIZER.encode([s], LENGTH)]]
            found = [i for i, owner in enumerate(pieces.owner.tolist()) if owner == k]
            assert [pieces.ids[i][pieces.mask[i]].tolist() for i in found] == expected
            several += len(expected) > 1
    assert several


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("一只狗。两只猫！真的？", ["一只狗。", "两只猫！", "真的？"]),
        ("A dog. Two cats! Really?", ["A dog.", "Two cats!", "Really?"]),
        ("It is 3.5 cm wide. No change.", ["It is 3.5 cm wide.", "No change."]),
        ("no end", ["no end"]),
        ("他说：“好！”然后走了。", ["他说：“好！”", "然后走了。"]),
        ("Wait... what?!", ["Wait...", "what?!"]),
        ("。。。", ["。。。"]),
        ("a. . b", ["a.", "b"]),
        ('He said "stop." Then (so!) he left.', ['He said "stop."', "Then (so!)", "he left."]),
        ("first line.\nsecond", ["first line.", "second"]),
        ("第一.第二", ["第一.", "第二"]),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


def test_parallel_texts_are_in_another_language():
    corpus = Memory()
    loader = make(corpus, asked=Needs(languages=2))
    for step in range(5):
        batch = loader[step]
        parallel = batch.columns["parallel"]
        assert (parallel.language != batch.texts.language).all()
        for k, row in enumerate(batch.index.tolist()):
            own = corpus.record(row).texts[corpus.languages[parallel.language[k]]]
            encoded = [ids[mask].tolist() for text in own for ids, mask in [TOKENIZER.encode([text], LENGTH)]]
            assert parallel.ids[k][parallel.mask[k]].tolist() in encoded


def test_aligned_lists_give_the_translation_of_the_same_text():
    corpus = Memory()
    corpus.record = lambda row: Record("r", {"zh": ["一", "二", "三"], "en": ["1", "2", "3"]}, row)
    pairs = {text_id(a): b for a, b in zip("一二三123", "123一二三", strict=True)}
    batch = make(corpus, asked=Needs(languages=2))[0]
    parallel = batch.columns["parallel"]
    for k in range(6):
        expected = TOKENIZER.encode([pairs[int(batch.text_id[k])]], LENGTH)[0]
        assert torch.equal(parallel.ids[k], expected[0])


def test_tags_are_in_the_language_of_the_text_drawn():
    corpus = Memory()
    texts = {"zh": ["一", "二"], "en": ["1"]}
    given = [{"tags": {"zh": ["三", "四"], "en": ["3", "4"]}}, {"tags": ["3", "5"]}, {"tags": []}]
    corpus.record = lambda row: Record("r", texts, row, given[row % 3])
    batch = make(corpus, asked=Needs(tags=True))[0]
    tags = batch.columns["tags"]
    assert torch.equal(tags.language, batch.texts.language)
    for k, row in enumerate(batch.index.tolist()):
        spoken = corpus.languages[batch.texts.language[k]]
        want = [{"zh": "三 四", "en": "3 4"}[spoken], "3 5", ""][row % 3]
        ids, mask = TOKENIZER.encode([want], LENGTH)
        assert tags.ids[k][tags.mask[k]].tolist() == ids[mask].tolist()
    assert "tags" not in make(corpus)[0].columns
    corpus.record = lambda row: Record("r", texts, row, {"tags": "dog"} if row else {"tags": []})
    with pytest.raises(UserError, match="row 'r': column \"tags\" must hold names"):
        make(corpus, asked=Needs(tags=True))
    corpus.record = lambda row: Record("r", texts, row, {"tags": ["dog"] if row % 2 else []})
    assert make(corpus, asked=Needs(tags=True)).remarks == (
        "corpus memory, split train: 12 of 23 rows have no tags; an empty text stands there",
    )
    corpus.record = lambda row: Record("r", texts, row)
    with pytest.raises(UserError, match='the system needs a column "tags"'):
        make(corpus, asked=Needs(tags=True))


def test_texts_to_translate_are_those_of_the_texts_drawn():
    corpus = Memory()
    texts = {"zh": ["一", "二", "三"], "en": ["1", "2", "3"]}
    given = {"ambiguous": {"zh": ["甲", "乙", "丙"], "en": ["4", "5", "6"]}}
    corpus.record = lambda row: Record("r", texts, row, given if row % 2 else {})
    loader = make(corpus, asked=Needs(languages=2))
    vague = {text_id(a): b for a, b in zip("一二三123", "甲乙丙456", strict=True)}
    clear = {text_id(a): a for a in "一二三123"}
    for step in range(3):
        batch = loader[step]
        sources = batch.columns["ambiguous"]
        assert torch.equal(sources.language, batch.texts.language)
        for k, row in enumerate(batch.index.tolist()):
            text = (vague if row % 2 else clear)[int(batch.text_id[k])]
            assert torch.equal(sources.ids[k], TOKENIZER.encode([text], LENGTH)[0][0])
    assert "ambiguous" not in make(corpus, asked=Needs())[0].columns
    corpus.record = lambda row: Record("r", texts, row)
    assert "ambiguous" not in make(corpus, asked=Needs(languages=2))[0].columns


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"columns": ("depth",)}, "row 'r0': has no column 'depth'"),
        ({"columns": ("name",)}, "row 'r0': column 'name' must hold numbers, got 'cat'"),
        ({"spans": ("letters",)}, "needs letters spans"),
        ({"texts": 4}, "needs 4 texts in one language a row, and no row has them"),
        ({"languages": 4}, "needs texts in 4 languages"),
    ],
)
def test_a_corpus_that_lacks_something_is_refused(asked, message):
    with pytest.raises(UserError, match=message):
        check_needs(Memory(), Needs(**asked))
    with pytest.raises(UserError, match=message):
        make(asked=Needs(**asked))


def test_a_column_missing_in_a_later_row_is_refused_before_any_step():
    corpus = Memory()
    record = corpus.record
    corpus.record = lambda row: Record("late", {"zh": ["一"]}, row) if row == 22 else record(row)
    with pytest.raises(UserError, match="row 'late': has no column 'noise'"):
        make(corpus, asked=Needs(columns=("noise",)))


def test_a_plan_set_between_runs():
    loader = make()
    loader.plan = torch.arange(17, -1, -1)
    assert loader[1].index.tolist() == loader[1].entry.tolist() == [11, 10, 9, 8, 7, 6]
    for wrong in (17, 19):  # rows beyond an epoch were left out without a word
        loader.plan = torch.arange(wrong)
        with pytest.raises(UserError, match=f"plan of an epoch has {wrong} rows and must have 18"):
            loader[1]


def test_truncations_are_counted_across_workers():
    corpus = Memory()
    corpus.record = lambda row: Record("r", {"en": ["a" if row % 2 else " ".join("abcdefghijklmnop")]}, row)
    alone, helped = make(corpus), make(corpus, workers=2)
    list(alone.run(0, 3))
    list(helped.run(0, 3))
    rows = [row for step in range(3) for row in alone.order.batch(step).tolist()]
    assert alone.texts == helped.texts == 18
    assert alone.truncated == helped.truncated == sum(row % 2 == 0 for row in rows)


def test_wrong_settings_are_refused():
    wrong = {"texts": "some", "augment": "flip", "on_bad": "cry", "workers": -1, "crop_scale": (0.9, 0.5)}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=name):
            DataConfig(**{name: value})


def test_pictures_for_evaluation():
    corpus = Memory(broken=(4,))
    rows = [9, 4, 2, 2, 22]
    images, kept, faults = images_of(corpus, rows, 8)
    assert kept == [9, 2, 2, 22]
    assert faults == {"truncated": 1}
    assert all(torch.equal(p, resize(corpus.image(row), 8)) for p, row in zip(images.pixels, kept, strict=True))
    for workers in (0, 2):
        parts = list(image_batches(corpus, rows, 8, batch_size=2, workers=workers))
        assert torch.equal(torch.cat([part[0].pixels for part in parts]), images.pixels)
        assert [row for part in parts for row in part[1]] == kept
        assert [len(part[0]) for part in parts] == [1, 2, 1]
    assert len(images_of(corpus, [4], 8)[0]) == 0


def test_half_of_the_pictures_are_mirrored_and_their_views_with_them():
    image = Memory().image(3)
    views = {"same": View(16), "whole": View(16, crop="none"), "own": View(16, crop="own")}
    mirrored = dict.fromkeys(views, 0)
    for entry in range(200):
        key = (0, 0, entry)
        plain, flipped = (
            PictureViews(16, views, "crop", (0.5, 1.0), flip=flip).made(image, key) for flip in (False, True)
        )
        turned = not torch.equal(plain[""], flipped[""])
        assert torch.equal(flipped[""], plain[""].flip(2) if turned else plain[""])
        assert torch.equal(flipped["same"], flipped[""])  # what is compared place by place is mirrored alike
        assert torch.equal(flipped["whole"], plain["whole"])
        for name in views:
            mirrored[name] += not torch.equal(plain[name], flipped[name])
    assert 70 < mirrored["same"] < 130
    assert 70 < mirrored["own"] < 130


def test_the_strength_of_randaugment():
    """At 5 of 10 brightness stays (0.1 + 1.8 / 2 = 1): only what moves pixels changes a flat grey one."""
    grey = torch.full((3, 16, 16), 100, dtype=torch.uint8)
    changed = {}
    for strength in (5.0, 7.0):
        how = PictureViews(16, {}, "crop+randaugment", (1.0, 1.0), strength)
        made = [how.made(grey, (0, 0, entry))[""] for entry in range(200)]
        centres = torch.stack([picture[:, 6:10, 6:10].float().mean() for picture in made])
        changed[strength] = int(((centres - 100).abs() > 20).sum())
    assert changed[5.0] < changed[7.0]
    with pytest.raises(ValueError, match="strength"):
        DataConfig(strength=11)
    with pytest.raises(ValueError, match="flip mirrors"):
        DataConfig(flip=True, augment="none")


def test_the_part_of_a_picture_that_is_shown():
    """40 x 60 pixels become 20 x 30, of which 16 x 16 are cut out 2 from the top and 7 from the left."""
    fit = Fit(16, shorter_side=20)
    assert fit.part(40, 60) == pytest.approx((7 / 30, 2 / 20, 23 / 30, 18 / 20))
    assert Fit(16).part(40, 60) == (0, 0, 1, 1)
    corner, box = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.5, 0.0, 1.0, 1.0]])
    part = torch.tensor([fit.part(40, 60)])
    assert on_whole(corner, part).tolist()[0] == pytest.approx([7 / 30, 0.1])
    assert on_whole(box, part).tolist()[0] == pytest.approx([0.5, 0.1, 23 / 30, 0.9])
    square, wide = Memory(), Memory()
    wide.image = lambda row: square.image(row)[:, :24, :].repeat(1, 1, 2)
    for corpus, same in ((square, fit), (wide, Fit(16))):
        assert images_of(corpus, [1, 2], 16)[0].seen is None
        assert (images_of(corpus, [1, 2], same)[0].seen is None) == (same.shorter_side is None)
    seen = images_of(wide, [1, 2], fit)[0].select(torch.tensor([1, 1, 0])).seen
    assert seen.tolist() == [pytest.approx(fit.part(*wide.image(row).shape[1:])) for row in (2, 2, 1)]


class Chests(Memory):
    """Two views a row, of sizes of their own."""

    pictures = 2

    def shown(self, row):
        return [self.image(row), self.image(row)[:, ::2, ::3].contiguous()]


def test_separate_pictures_of_a_row():
    corpus = Chests(broken=(2,))
    loader = make(corpus, augment="none", pictures=2)
    batch = loader[0]
    assert batch.images.owner.tolist() == [k for k in range(6) for _ in range(2)]
    for k, row in enumerate(batch.index.tolist()):
        for part in range(2):
            assert torch.equal(batch.images.part(part).pixels[k], resize(corpus.shown(row)[part], 16))
    images, kept, faults = images_of(corpus, [5, 2, 1], 16)
    assert (kept, faults) == ([5, 1], {"truncated": 1})
    assert torch.equal(images.part(1).pixels[1], resize(corpus.shown(1)[1], 16))
    alike = Chests()
    alike.shown = lambda row: [alike.image(row)] * 2
    first, second = (make(alike, pictures=2)[0].images.part(k).pixels for k in range(2))
    assert torch.equal(first, make()[0].images.pixels)
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))  # each is cropped by its own draw
    with pytest.raises(UserError, match="its rows have 2 separate pictures, 1 can be read"):
        make(corpus)


def test_entries_are_what_the_order_named():
    loader = make(Memory(7, broken=(3,)), batch_size=38, texts="all")
    batch = loader[0]
    assert batch.entry.tolist() == loader.order.batch(0).tolist()
    rows = [int(loader.every_text[entry][0]) for entry in batch.entry]
    same = [a == b for a, b in zip(rows, batch.index.tolist(), strict=True)]
    assert [row for row, equal in zip(rows, same, strict=True) if not equal] == [row for row in rows if row == 3]
    assert 3 in rows, "a broken row's entry keeps its place"
    plain = make(Memory(broken=(3,)))
    for step in range(3):
        assert plain[step].entry.tolist() == plain.order.batch(step).tolist()


def test_regions_go_beside_the_pictures():
    corpus = Memory()
    record = corpus.record
    given = {row: (np.full((1 + row % 3, 5), row / 2), np.full((1 + row % 3, 4), 0.25)) for row in range(23)}
    corpus.record = lambda row: Record(
        record(row).id, record(row).texts, row, {"features": given[row][0].tolist(), "boxes": given[row][1].tolist()}
    )
    loader = make(corpus, reads=Reads(features=True))
    batch = loader[1]
    assert torch.equal(batch.images.pixels, make()[1].images.pixels)
    for images, rows in ((batch.images, batch.index.tolist()), (images_of(corpus, [5, 4], 8, True)[0], [5, 4])):
        longest = max(1 + row % 3 for row in rows)
        assert images.features.shape == (len(rows), longest, 5)
        for k, row in enumerate(rows):
            count = 1 + row % 3
            assert images.feature_mask[k].tolist() == [True] * count + [False] * (longest - count)
            assert torch.equal(images.features[k, :count], torch.full((count, 5), row / 2))
            assert torch.equal(images.boxes[k, :count], torch.full((count, 4), 0.25))
            assert not images.features[k, count:].any()
    with pytest.raises(UserError, match="reads regions of pictures; add a column 'features'"):
        check_reads(Memory(), Reads(features=True))
    for features, boxes, message in (
        ([[1.0]], [[0, 0, 1]], "must be"),
        ([1.0], [[0, 0, 1, 1]], "must be"),
        ([[1.0]], [[0, 0, 2, 1]], "shares of width and height"),
        ([["a"]], [[0, 0, 1, 1]], "must hold numbers"),
    ):
        corpus.record = lambda row, f=features, b=boxes: Record("r", record(row).texts, 0, {"features": f, "boxes": b})
        with pytest.raises(UserError, match=message):
            make(corpus, reads=Reads(features=True))[0]
    corpus.record = lambda row: Record(
        "r", record(row).texts, 0, {"features": [[1.0] * (1 + row % 2)], "boxes": [[0, 0, 1, 1]]}
    )
    with pytest.raises(UserError, match="rows differ in width \\(1, 2\\)"):
        make(corpus, reads=Reads(features=True))[0]
