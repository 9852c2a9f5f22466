"""Click-through selection: the statistic, the rule against a slow version, logs, and simulated clicks."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.pairs import with_pictures
from tuwen.cli import main
from tuwen.data.clicked import Rule, choose_pairs, wilson
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.corpora.table import open_table
from tuwen.data.corpus import all_texts
from tuwen.data.curate.clicks import by_clicks, select_log
from tuwen.errors import UserError


def test_wilson_by_hand():
    """8 of 10: (0.8 + 1.9208/10 - 1.96 sqrt(0.016 + 0.009604)) / 1.38416 = 0.4902 (Brown, Cai and DasGupta 2001)."""
    found = wilson(np.array([8, 0, 5, 1]), np.array([10, 10, 5, 0]))
    assert found == pytest.approx([0.4902, 0.0, 0.5655, 0.0], abs=1e-4)
    assert wilson(np.array([1]), np.array([1]))[0] < wilson(np.array([12]), np.array([20]))[0]


def test_the_floor_drops_one_of_one_and_keeps_twelve_of_twenty():
    kept = choose_pairs(np.array([0, 0]), np.array([1, 20]), np.array([1, 12]), np.array([0, 1]), Rule(floor=5))
    assert kept.tolist() == [False, True]


def slow(pairs, rule):
    """Query by query, best first."""
    bound = {pair: float(wilson(np.array([pair[3]]), np.array([pair[2]]))[0]) for pair in pairs}
    kept = set()
    for query in {pair[0] for pair in pairs}:
        fit = [p for p in pairs if p[0] == query and p[2] >= rule.floor and bound[p] >= rule.least]
        kept |= set(sorted(fit, key=lambda p: (-bound[p], p[1]))[: rule.top])
    if rule.share is not None:
        wanted = round(rule.share * sum(p[2] >= rule.floor for p in pairs))
        kept = set(sorted(kept, key=lambda p: (-bound[p], p[0], p[1]))[:wanted])
    return kept


@given(st.data())
def test_the_rule_against_the_slow_version_in_any_order(data):
    count = data.draw(st.integers(1, 25))
    pairs = []
    for key in range(count):
        impressions = data.draw(st.integers(0, 30))
        pairs.append((data.draw(st.integers(0, 4)), key, impressions, data.draw(st.integers(0, impressions))))
    rule = Rule(
        data.draw(st.integers(1, 12)),
        data.draw(st.sampled_from([0.0, 0.1, 0.4])),
        data.draw(st.sampled_from([None, 1, 2])),
        data.draw(st.sampled_from([None, 0.3, 1.0])),
    )
    for order in (pairs, data.draw(st.permutations(pairs))):
        columns = [np.array(column) for column in zip(*order, strict=True)]
        kept = choose_pairs(columns[0], columns[2], columns[3], columns[1], rule)
        assert {pair for pair, stays in zip(order, kept, strict=True) if stays} == slow(pairs, rule)


def test_refused():
    for wrong in ({"floor": 0}, {"least": 2}, {"top": 0}, {"share": 0}):
        with pytest.raises(UserError):
            Rule(**wrong)
    with pytest.raises(UserError, match="3 clicks of 2 impressions"):
        choose_pairs(np.array([0]), np.array([2]), np.array([3]), np.array([0]), Rule())
    with pytest.raises(UserError, match="no column clicks"):
        by_clicks(Scenes("train", count=3, side=32), Rule())
    with pytest.raises(UserError, match="no pair stays"):
        by_clicks(Scenes("train", count=3, side=32, clicks=True), Rule(floor=1000))


def test_simulated_clicks_tell_true_captions_from_wrong_ones():
    """Section 9 of the card, E1: of the true pairs at 50 % noise more than 0.95 are kept."""
    corpus = Scenes("train", count=300, side=32, noise=0.5, clicks=True)
    noisy = [corpus.record(row).columns["noisy"] for row in range(300)]
    selected = by_clicks(corpus, Rule(share=1 - sum(noisy) / 300))
    texts = [len(list(all_texts(corpus.record(row)))) for row in range(300)]
    true = sum(count for count, wrong in zip(texts, noisy, strict=True) if not wrong)
    kept = sum(
        len(list(all_texts(selected.record(k)))) for k, row in enumerate(selected.rows.tolist()) if not noisy[row]
    )
    assert kept / true > 0.95


class TestLog:
    LOG = "query,image,impressions,clicks\n红鞋,images/1.png,10,4\n红鞋,images/1.png,10,8\n"
    LOG += "红鞋,images/2.png,20,1\ncup,images/3.png,1,1\n"

    def test_a_log_becomes_a_table(self, tmp_path):
        folder = with_pictures(tmp_path)
        (folder / "log.csv").write_text(self.LOG + "x,images/1.png,3,9\ny,images/1.png,a,1\n\n")
        told = select_log(folder / "log.csv", folder / "chosen.jsonl", Rule(floor=5, least=0.2))
        assert told == (3, 1, {"wrong count": 1, "wrong type": 1})
        corpus = open_table(folder / "chosen.jsonl", "all")
        assert [dict(corpus.record(0).texts), corpus.record(0).columns["clicks"]] == [{"zh": ["红鞋"]}, [[20, 12]]]

    def test_in_every_form_and_order(self, tmp_path):
        lines = [line.split(",") for line in self.LOG.splitlines()]
        rows = [dict(zip(lines[0], cells, strict=True)) for cells in reversed(lines[1:])]
        (tmp_path / "a.csv").write_text(self.LOG)
        (tmp_path / "a.tsv").write_bytes(b"\xef\xbb\xbf" + self.LOG.replace(",", "\t").replace("\n", "\r\n").encode())
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
        made = []
        for name in ("a.csv", "a.tsv", "a.jsonl"):
            select_log(tmp_path / name, tmp_path / f"{name}.out.jsonl", Rule())
            made.append((tmp_path / f"{name}.out.jsonl").read_text())
        assert len(set(made)) == 1

    def test_hostile_logs(self, tmp_path):
        log = tmp_path / "log.csv"
        for content, what in (
            (b"", "no usable line; write query, image"),
            (
                b"query,image,impressions,clicks\ncat,a.jpg,ten,1\n",
                "no usable line; .*log.csv:2: impressions and clicks",
            ),
            ("query,image,impressions,clicks\n".encode("utf-16"), "no usable line; .*log.csv:1: UTF-16"),
            (b"a,b\n1,2\n", "log.csv:1: no column clicks"),
            (self.LOG.replace("12", "1").encode("gb18030"), "no pair"),
            (self.LOG.encode()[:30] + b"\0" * 9, "no usable line; .*a NUL byte"),
        ):
            log.write_bytes(content)
            with pytest.raises(UserError, match=what):
                select_log(log, tmp_path / "out.jsonl", Rule(least=0.3))
        with pytest.raises(UserError, match="no such file"):
            select_log(tmp_path / "none.csv", tmp_path / "out.jsonl", Rule())

    def test_commands(self, tmp_path, capsys):
        (tmp_path / "log.csv").write_text(self.LOG)
        out = str(tmp_path / "chosen.jsonl")
        assert main(["data", "clicks", str(tmp_path / "log.csv"), "--out", out, "--top", "1"]) == 0
        assert "1 of 3 pairs" in capsys.readouterr().out
        corpus = "scenes:count=20,side=32,noise=0.5,clicks=true"
        words = ["data", "clicks", corpus, "--out", str(tmp_path / "shards"), "--least", "0.2"]
        assert main(words) == 0
        assert main(["data", "clicks", corpus, "--out", str(tmp_path / "x"), "--least", "0.99"]) == 1
        assert "no pair stays" in capsys.readouterr().err


def test_tables_that_cannot_be_written(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("query,image,impressions,clicks\n猫,a.jpg,20,12\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder: cannot be written: a folder; choose another file"):
        select_log(log, tmp_path / "folder", Rule())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "log.csv"]


def test_a_log_whose_lines_end_in_cr_alone_is_told_so(tmp_path):
    log = tmp_path / "log.csv"
    log.write_bytes("query,image,impressions,clicks\r猫,a.jpg,20,12\r".encode())
    with pytest.raises(UserError, match="lines end in CR alone; save the file with LF or CRLF line ends"):
        select_log(log, tmp_path / "pairs.jsonl", Rule())


def test_a_table_that_is_there_stays(tmp_path):
    log, table = tmp_path / "log.csv", tmp_path / "pairs.jsonl"
    log.write_text("query,image,impressions,clicks\n猫,a.jpg,20,12\n")
    table.write_text('{"id": "mine"}\n')
    with pytest.raises(UserError, match=r"pairs\.jsonl: is there already and was not made by"):
        select_log(log, table, Rule())
    assert table.read_text() == '{"id": "mine"}\n'


def test_pictures_are_named_from_the_new_table(tmp_path):
    (tmp_path / "logs" / "pictures").mkdir(parents=True)
    log = tmp_path / "logs" / "log.csv"
    log.write_text("query,image,impressions,clicks\n猫,pictures/a.jpg,20,12\n")
    assert select_log(log, tmp_path / "pairs.jsonl", Rule())[:2] == (1, 1)
    assert json.loads((tmp_path / "pairs.jsonl").read_text())["image"] == "logs/pictures/a.jpg"
    with pytest.raises(UserError, match=r"does not lie below .*elsewhere; write the table into .*logs or a folder"):
        select_log(log, tmp_path / "elsewhere" / "pairs.jsonl", Rule())
    assert not (tmp_path / "elsewhere").exists()
