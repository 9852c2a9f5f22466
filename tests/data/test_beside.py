"""Tables beside a corpus: by row and text, refused where they are not of it, and what the loader makes of them."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.training.toy import Memory
from tuwen.data import draws
from tuwen.data.beside import TABLE, Beside, OfTexts, SideTable, laid_over, without_noisy, write_table
from tuwen.data.corpus import all_texts, text_id
from tuwen.data.loader import DataConfig, Loader
from tuwen.data.needs import numbers
from tuwen.data.order import Order
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError
from tuwen.systems.system import Needs, Reads

ROWS = 8


def table(folder, rows, texts=None, optional=False, **columns):
    """A table in a folder of its own."""
    folder.mkdir()
    keys = {"row": pa.array(rows, pa.string()), "text": pa.array(texts or [None] * len(rows), pa.int64())}
    write_table(folder / TABLE, pa.table({**keys, **columns}), optional)
    return str(folder)


def noisy(folder, corpus, of):
    """A table of noise: of(row, place of the text)."""
    keys = [(corpus.record(row).id, text_id(text), of(row, place)) for row in range(len(corpus))
            for place, text in enumerate(all_texts(corpus.record(row)))]  # fmt: skip
    rows, texts, noise = zip(*keys, strict=True)
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled = ([column[k] for k in order] for column in (rows, texts))
    return table(folder, *shuffled, noise=pa.array([noise[k] for k in order], pa.float32()))


def loader(corpus, columns=(), batch=4, **config):
    tokenizer = Tokenizer.train([text for row in range(len(corpus)) for text in all_texts(corpus.record(row))], size=60)
    data = DataConfig(augment="none", workers=0, **config)
    return Loader(corpus, tokenizer, Order(len(corpus), batch, 0), data, Reads(), Needs(columns=columns), 0, 8, 16)


def test_values_come_by_row_and_by_text_whatever_the_order_of_the_table(tmp_path):
    corpus = Memory(ROWS)
    place = noisy(tmp_path / "noise", corpus, lambda row, place: (row + place / 2) / 10)
    places = table(tmp_path / "ages", [str(row) for row in reversed(range(ROWS))], age=[7, 6, 5, 4, 3, 2, 1, 0])
    beside = laid_over(corpus, [place, places])
    record = beside.record(3)
    english, chinese = (text_id(record.texts[language][0]) for language in ("en", "zh"))
    assert record.columns["age"] == 3
    assert isinstance(record.columns["noise"], OfTexts)
    assert record.columns["noise"] == {english: pytest.approx(0.3), chinese: pytest.approx(0.35)}
    assert numbers(record, "noise", record.texts["zh"][0]) == pytest.approx(0.35)
    assert numbers(record, "age").dtype == np.int64
    assert beside.fingerprint != corpus.fingerprint


def test_a_batch_has_the_value_of_the_text_that_was_drawn(tmp_path):
    corpus = Memory(ROWS)
    beside = laid_over(corpus, [noisy(tmp_path / "noise", corpus, lambda row, place: (row + place / 2) / 10)])
    for step in range(6):
        batch = loader(beside, ("noise",))[step]
        right = (batch.index + batch.texts.language / 2) / 10
        assert torch.allclose(batch.columns["noise"], right.float(), atol=1e-6)


def test_another_table_another_fingerprint(tmp_path):
    corpus, rows = Memory(2), ["0", "1"]
    places = [table(tmp_path / str(k), rows, age=ages) for k, ages in enumerate([[1, 2], [1, 2], [1, 3]])]
    prints = [laid_over(corpus, [place]).fingerprint for place in places]
    assert prints[0] == prints[1] != prints[2]


def test_tables_that_are_not_of_the_corpus_are_refused(tmp_path):
    corpus = Memory(3)
    short = table(tmp_path / "short", ["0", "1"], age=[1, 2])
    with pytest.raises(UserError, match=r"has nothing of the row '2'"):
        laid_over(corpus, [short])
    assert "age" not in laid_over(corpus, [table(tmp_path / "may", ["0"], optional=True, age=[1])]).record(2).columns
    twice = table(tmp_path / "twice", ["0", "1", "1", "2"], age=[1, 2, 2, 3])
    with pytest.raises(UserError, match=r"has the row '1' twice"):
        laid_over(corpus, [twice])
    one = table(
        tmp_path / "one", ["0", "1", "2"], [text_id(corpus.record(r).texts["en"][0]) for r in range(3)], x=[1] * 3
    )
    with pytest.raises(UserError, match="has nothing of one of its texts"):
        laid_over(corpus, [one])


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "no readable Arrow or Parquet file"),
        (b"PAR1\x00\x00\x00\xffPAR1", "no readable Arrow or Parquet file"),
        (pa.table({"row": [1, 2], "text": [1, 2]}), "lacks the columns row"),
        (pa.table({"row": ["1", "2"]}), "lacks the columns row"),
        (pa.table({"row": ["1", None], "text": pa.array([None, None], pa.int64())}), "1 entries name no row"),
        (pa.table({"row": pa.array([b"\xff"]).view(pa.string()), "text": [None]}), "UTF"),
        (pa.table({"row": ["1"], "text": [None], "written": ["a dog"]}), "holds no texts by language"),
        (pa.Table.from_arrays([["1"], [None], [1], [2]], ["row", "text", "x", "x"]), "Multiple matches"),
    ],
)
def test_what_is_no_table_is_told_in_a_line(content, what, tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(content) if isinstance(content, bytes) else pq.write_table(content, path)
    with pytest.raises(UserError, match=what) as told:
        SideTable.read(path)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 500


def test_a_date_that_python_does_not_know_is_a_line(tmp_path):
    place = table(tmp_path / "t", ["0"], optional=True, day=pa.array([2**58], pa.timestamp("us")))
    with pytest.raises(UserError, match="make it again"):
        laid_over(Memory(ROWS), [place])


def test_a_written_text_stands_in_as_often_as_the_own_is_likely_wrong(tmp_path):
    corpus = Memory(40)
    languages = pa.array([{"en": f"written {row}", "zh": None} for row in range(40)])
    written = table(tmp_path / "written", [str(row) for row in range(40)], optional=True, written=languages)
    noise = noisy(tmp_path / "noise", corpus, lambda row, place: 0.3 if row < 20 else 0.0)
    batches = loader(laid_over(corpus, [noise, written]), ("noise",), batch=40, languages=("en",))
    known = [{text_id(text) for text in all_texts(corpus.record(row))} for row in range(40)]
    swapped = torch.zeros(40)
    for epoch in range(60):
        batch = batches[epoch]
        new = torch.tensor([int(t) not in known[int(row)] for row, t in zip(batch.index, batch.text_id, strict=True)])
        swapped[batch.index] += new
        assert bool((batch.columns["noise"][new] == 0).all())
        own = {row: text_id(f"written {row}") for row in range(40)}
        assert all(int(t) == own[int(row)] for row, t in zip(batch.index[new], batch.text_id[new], strict=True))
    assert swapped[20:].sum() == 0
    assert abs(float(swapped[:20].mean()) / 60 - 0.3) < 4 * (0.3 * 0.7 / 1200) ** 0.5


def test_without_noise_a_written_text_is_one_more(tmp_path):
    corpus = Memory(2)
    languages = pa.array([{"en": "a", "zh": None}, {"en": "b", "zh": "二"}])
    beside = laid_over(corpus, [table(tmp_path / "written", ["0", "1"], written=languages)])
    assert beside.record(0).texts == {"en": [corpus.record(0).texts["en"][0], "a"], "zh": corpus.record(0).texts["zh"]}
    assert beside.record(1).texts["zh"][-1] == "二"


def test_dropping_leaves_texts_that_are_likelier_right(tmp_path):
    corpus = Memory(4)
    noise = noisy(tmp_path / "noise", corpus, lambda row, place: [[0.9, 0.1], [0.9, 0.8], [0, 0], [0.5, 1]][row][place])
    left = without_noisy(laid_over(corpus, [noise]))
    assert left.rows.tolist() == [0, 2, 3]
    assert [sorted(k for k, v in left.record(row).texts.items() if v) for row in range(3)] == [
        ["zh"],
        ["en", "zh"],
        ["en"],
    ]


def test_keys_of_rows_are_held_apart_by_their_ids(tmp_path, monkeypatch):
    monkeypatch.setattr(draws, "key", lambda *parts: 7)  # every row of one key
    corpus = Memory(3)
    beside = Beside(corpus, [SideTable.read(table(tmp_path / "t", ["2", "0", "1"], age=[2, 0, 1]))])
    assert [beside.record(row).columns["age"] for row in range(3)] == [0, 1, 2]
    assert replace(beside.record(0)).id == "0"
