"""Texts chosen by a corpus's click log, as a stage: the table, as many by chance, and what is trained on."""

import pyarrow.parquet as pq
import pytest

from tuwen.data.beside import laid_over
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.corpus import all_texts, text_id
from tuwen.data.curate.clicks import by_clicks
from tuwen.errors import UserError
from tuwen.training.stages.clicks import ClicksConfig
from tuwen.training.stages.doing import make_table

CORPUS = Scenes(count=60, side=32, noise=0.5, clicks=True)


def texts_of(corpus) -> list[tuple[str, int]]:
    records = (corpus.record(row) for row in range(len(corpus)))
    return sorted({(record.id, text_id(text)) for record in records for text in all_texts(record)})


def test_what_stays_is_what_the_rule_leaves(tmp_path):
    config = ClicksConfig(share=0.5)
    table = pq.read_table(make_table("clicks", None, CORPUS, config, 3, tmp_path, quiet=True)).to_pydict()
    keys = list(zip(table["row"], table["text"], strict=True))
    assert sorted(keys) == texts_of(CORPUS)
    stay = sorted(key for key, noise in zip(keys, table["noise"], strict=True) if noise == 0)
    assert set(table["noise"]) == {0.0, 1.0}
    assert stay == texts_of(by_clicks(CORPUS, config)) == texts_of(laid_over(CORPUS, [str(tmp_path)], "drop"))


def test_by_chance_as_many_stay_and_others(tmp_path):
    stay = {}
    for name, by, seed in (
        ("clicks", "clicks", 3),
        ("chance", "chance", 3),
        ("again", "chance", 3),
        ("else", "chance", 4),
    ):
        config = ClicksConfig(share=0.4, by=by)
        table = pq.read_table(make_table("clicks", None, CORPUS, config, seed, tmp_path / name, quiet=True)).to_pydict()
        rows = zip(table["row"], table["text"], table["noise"], strict=True)
        stay[name] = {(row, text) for row, text, noise in rows if not noise}
    assert len({len(own) for own in stay.values()}) == 1
    assert stay["chance"] == stay["again"] != stay["else"]
    wrong = {record.id for record in map(CORPUS.record, range(60)) if record.columns["noisy"]}
    shares = {name: sum(row in wrong for row, _ in own) / len(own) for name, own in stay.items()}
    assert shares["clicks"] < 0.05
    assert 0.3 < shares["chance"] < 0.7


def test_refused(tmp_path):
    with pytest.raises(UserError, match="no column clicks"):
        make_table("clicks", None, Scenes(count=4, side=32), ClicksConfig(), 0, tmp_path / "a", quiet=True)
    with pytest.raises(UserError, match="no text stays"):
        make_table("clicks", None, CORPUS, ClicksConfig(floor=1000), 0, tmp_path / "b", quiet=True)
