"""Files of predictions against the rules of who scores them: what is taken, and each way to be refused."""

import base64
import io
import json

import pytest
from PIL import Image

import tuwen
from tests.data.published import muge, picture
from tests.data.published_asked import MAKERS
from tests.search.common import untrained
from tuwen import cli
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


def test_captions_of_a_run_are_what_coco_s_server_takes(tmp_path):
    """`loadRes` of pycocotools: a list whose every entry is of a picture of the split; and here all of them, once."""
    coco = tmp_path / "coco"
    MAKERS["coco-captions"](coco)
    path = coco / "annotations/image_info_test2014.json"
    content = json.loads(path.read_text())
    for n in (391895, 7):
        name = f"COCO_test2014_{n:012d}.jpg"
        content["images"].append(content["images"][0] | {"file_name": name, "id": n})
        (coco / "test2014" / name).write_bytes(picture(n % 200))
    path.write_text(json.dumps(content))
    out = tmp_path / "captions_test2014_tuwen_results.json"
    run = untrained(tmp_path / "run", "nlip")
    asked = ["eval", str(run), "--corpus", f"coco-captions:{coco}", "--task", "captioning", "--predictions", str(out)]
    assert cli.main(asked) == 0
    entries = json.loads(out.read_text())
    assert type(entries) is list
    assert sorted(entry["image_id"] for entry in entries) == [7, 102, 391895]
    for entry in entries:
        assert entry.keys() == {"image_id", "caption"}
        assert type(entry["image_id"]) is int
        assert entry["caption"].strip()


def test_rankings_of_a_run_are_what_muge_s_server_takes(tmp_path):
    """Lines of JSON: each query of the split once, with ten different pictures of it by their numbers."""
    folder = tmp_path / "muge"
    folder.mkdir()
    muge(folder)
    items, queries = [1000 + 17 * n for n in range(13)], {5: "红色连衣裙", 11: "托特包", 240031: "蓝帽"}
    lines = [f"{item}\t{base64.b64encode(picture(15 * n)).decode()}\n" for n, item in enumerate(items)]
    (folder / "MR_test_imgs.tsv").write_text("".join(lines))
    told = [json.dumps({"query_id": n, "query_text": text}, ensure_ascii=False) for n, text in queries.items()]
    (folder / "MR_test_queries.jsonl").write_text("\n".join(told) + "\n")
    out, run = tmp_path / "test_predictions.jsonl", untrained(tmp_path / "run", "clip")
    asked = ["eval", str(run), "--corpus", f"muge:{folder}", "--task", "retrieval", "--predictions", str(out)]
    assert cli.main(asked) == 0
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(answer["query_id"] for answer in answers) == sorted(queries)
    for answer in answers:
        assert answer.keys() == {"query_id", "item_ids"}
        assert all(type(item) is int for item in answer["item_ids"])
        assert len(set(answer["item_ids"])) == len(answer["item_ids"]) == 10
        assert set(answer["item_ids"]) <= set(items)
    answer = next(answer for answer in answers if answer["query_id"] == 11)
    shown = [Image.open(io.BytesIO(picture(15 * n))) for n in range(len(items))]
    both = tuwen.load(run).embed(shown, [queries[11]])
    cosines = (both.images.double() @ both.texts.double().T)[:, 0]
    assert answer["item_ids"] == [items[n] for n in cosines.argsort(descending=True)[:10].tolist()]
