"""Files of predictions against the rules of who scores them: what is taken, and each way to be refused."""

import json

import pytest

from tests.data.published_asked import MAKERS
from tuwen.benchmark.predictions import (
    check_answers,
    check_captions,
    check_predictions,
    check_rankings,
    check_statements,
    read_predictions,
)
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.open import open_corpus
from tuwen.errors import UserError

ANSWERS = [{"question_id": 1, "answer": "yes"}, {"question_id": 2, "answer": ""}]
STATEMENTS = [["dev-1-0-0", "True"], ["dev-1-1-0", "false"]]
CAPTIONS = [{"image_id": 7, "caption": "A dog."}, {"image_id": 8, "caption": "A cat."}]
RANKINGS = [{"query_id": 1, "item_ids": list(range(10))}, {"text_id": 2, "image_ids": list(range(5, 15))}]
HUGE = 10**5000


def test_what_the_rules_allow():
    check_answers(ANSWERS, {1, 2})
    check_statements(STATEMENTS[::-1], {"dev-1-0-0", "dev-1-1-0"})
    check_statements([["a", "TRUE"]], ["a"])
    check_captions(CAPTIONS, [7, 8])
    check_rankings(RANKINGS, {1, 2}, set(range(15)))
    check_rankings(RANKINGS, {2})  # further queries are allowed


REFUSED = [
    (check_answers, {"1": "yes"}, "the file is no list of entries"),
    (check_answers, ["yes", "no"], "entry 1: question_id is None; write a whole number"),
    (check_answers, [{"question_id": "1", "answer": "yes"}], "question_id is '1'"),
    (check_answers, [{"question_id": True, "answer": "yes"}], "question_id is True"),
    (check_answers, [{"question_id": 1, "answer": 3}], "entry 1: answer is 3; write a text"),
    (check_answers, [{"question_id": 1}], "entry 1: answer is None"),
    (check_answers, ANSWERS[:1], "1 of 2 predictions are missing, e.g. question_id 2"),
    (check_answers, [*ANSWERS, ANSWERS[0]], "question_id 1 stands twice"),
    (check_answers, [*ANSWERS, {"question_id": HUGE, "answer": "a"}], "1 predictions are for nothing of the split"),
    (check_statements, [["a", "maybe"]], "line 1: the prediction is 'maybe'"),
    (check_statements, [["a"]], "line 1: ['a']; write an identifier, a comma"),
    (check_statements, ["a,true"], "line 1: 'a,true'"),
    (check_statements, [["1", "true"]], "2 of 2 predictions are missing"),
    (check_captions, [{"image_id": 1, "caption": " "}], "entry 1: caption is ' '"),
    (check_captions, [{"image_id": 1.0, "caption": "a"}], "image_id is 1.0"),
    (check_captions, [{"image_id": 1, "caption": "a"}], "1 of 2 predictions are missing, e.g. image_id 2"),
    (check_rankings, [{"query_id": 1, "item_ids": list(range(9))}], "entry 1: 9 item_ids; write 10"),
    (check_rankings, [{"query_id": 1, "item_ids": [0, *range(9)]}], "one of item_ids stands twice"),
    (check_rankings, [{"query_id": 1, "item_ids": list("0123456789")}], "item_ids are ['0', "),
    (check_rankings, [{"text_id": 1, "image_ids": None}], "entry 1: no list of image_ids"),
    (check_rankings, RANKINGS[:1], "1 of 2 predictions are missing, e.g. query 2"),
    (check_rankings, [{"item_ids": list(range(10))}], "text_id is None"),
]


@pytest.mark.parametrize(("check", "entries", "what"), REFUSED)
def test_what_they_refuse_in_a_line(check, entries, what):
    wanted = {"a", "b"} if check is check_statements else {1, 2}
    with pytest.raises(UserError) as caught:
        check(entries, wanted)
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_pictures_of_another_split_are_no_answers():
    with pytest.raises(UserError, match="entry 2: image_ids has 14, which is no picture of the split"):
        check_rankings(RANKINGS, {1, 2}, set(range(14)))


def test_a_split_by_the_rules_of_its_server(tmp_path):
    MAKERS["vqa-v2"](tmp_path / "vqa")
    questions = open_corpus(f"vqa-v2:{tmp_path / 'vqa'}", "test")
    check_predictions([{"question_id": n, "answer": "a"} for n in (3000, 3001)], questions)
    MAKERS["nlvr2"](tmp_path / "nlvr2")
    pairs = open_corpus(f"nlvr2:{tmp_path / 'nlvr2'}", "test")
    check_predictions([{"identifier": f"test1-12-{k}-0", "prediction": "true"} for k in (0, 1)], pairs)
    MAKERS["coco-captions"](tmp_path / "coco")
    pictures = open_corpus(f"coco-captions:{tmp_path / 'coco'}", "test")
    check_predictions([{"image_id": 102, "caption": "a dog"}], pictures)
    for corpus in (questions, pairs, pictures):
        with pytest.raises(UserError, match="predictions are missing"):
            check_predictions([], corpus)
    check_predictions([{"anything": 1}], Scenes("test", count=2))


def test_files(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(ANSWERS))
    (tmp_path / "b.csv").write_text("dev-1-0-0,True\r\ndev-1-1-0,false\r\n")
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, RANKINGS)) + "\n\n")
    check_answers(read_predictions(tmp_path / "a.json"), {1, 2})
    check_statements(read_predictions(tmp_path / "b.csv"), {"dev-1-0-0", "dev-1-1-0"})
    check_rankings(read_predictions(tmp_path / "c.jsonl"), {1, 2})
    for name, content in (
        ("d.json", b"[1,"),
        ("e.jsonl", b"{}\n{"),
        ("f.csv", b"\xff\xfe"),
        ("g.json", b"[" * 100_000),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            read_predictions(tmp_path / name)
