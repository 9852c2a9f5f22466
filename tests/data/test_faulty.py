"""Errors in reports: what each kind turns round, what it leaves alone, and rows that carry them; findings by name."""

import json

import pytest

from tests.tasks.stub import Pairs
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.corpora.scenes.truth import holds
from tuwen.data.corpus import Caption, text_id
from tuwen.data.edits import edited, exchanged_name, extent, location, negation
from tuwen.data.faulty import ERRORS, Errors, with_faults
from tuwen.data.findings import findings_of, prompts_of
from tuwen.errors import UserError


def test_places_are_exchanged_all_at_once_and_twice_is_the_text():
    """Card, check 9."""
    assert location("left lower lobe opacity", "en") == "right upper lobe opacity"
    for text in ("Left lower lobe, right apical.", "LEFT and right", "No side at all.", "the rightmost leftover"):
        assert location(location(text, "en"), "en").lower() == text.lower()
    assert location("Left, then right.", "en") == "Right, then left."
    assert location("the rightmost leftover", "en") == "the rightmost leftover"
    assert location("左肺上叶见斑片影，右侧正常。", "zh") == "右肺下叶见斑片影，左侧正常。"
    assert location("图上有一只猫", "zh") == "图上有一只猫"  # 上 alone says no place


def test_extents_have_no_way_back_from_slight():
    """Card, check 9 and section 10."""
    assert extent("slight effusion", "en") == "severe effusion"
    assert extent(extent("slight effusion", "en"), "en") == "mild effusion"
    assert extent("Mild, minimal and small.", "en") == "Severe, extensive and large."
    assert extent("moderate effusion", "en") == "moderate effusion"
    assert extent("少量积液，轻度水肿", "zh") == "大量积液，重度水肿"


@pytest.mark.parametrize(
    ("text", "turned"),
    [
        ("No pneumothorax.", "Pneumothorax."),
        ("There is no effusion. No edema.", "There is effusion. No edema."),
        ("no evidence of edema", "evidence of edema"),
        ("There is a small nodule.", "There is no small nodule."),
        ("X-ray showed progression.", "X-ray showed no progression."),
        ("The heart is enlarged.", "The heart is not enlarged."),
        ("The heart is not enlarged.", "The heart is enlarged."),
        ("Opacity with effusion", "Opacity without effusion"),
        ("Lung bases", "Lung bases"),
    ],
)
def test_one_statement_is_denied(text, turned):
    assert negation(text, "en") == turned


def test_one_statement_is_denied_in_chinese():
    assert negation("双肺未见渗出。", "zh") == "双肺可见渗出。"
    assert negation("图中有一只猫", "zh") == "图中没有一只猫"
    assert negation("图中没有猫", "zh") == "图中有猫"


def test_a_name_is_exchanged_for_one_that_is_not_there():
    assert exchanged_name("A red car and a car park", "en", ["car", "car park"], "dog") == "A red car and a dog"
    assert exchanged_name("Cats", "en", ["cat"], "dog") == "Cats"
    assert exchanged_name("一只猫", "zh", ["猫"], "狗") == "一只狗"
    assert edited("name", "a cat", "en", ["cat"], None) == "a cat"


def test_of_a_language_without_rules_nothing_is_made():
    for kind in ("location", "extent", "negation"):
        assert edited(kind, "links unten, keine", "de") == "links unten, keine"


def test_errors_in_scenes_are_errors_indeed():
    """What a caption says of a scene can be told: whole reports with another name, and other scenes' reports, are false
    of the picture; a side exchanged is, wherever the caption has one."""
    scenes = Scenes(count=40, side=32)
    errors, made = Errors(scenes), dict.fromkeys(ERRORS, 0)
    for row in range(40):
        record = scenes.record(row)
        for language in ("en", "zh"):
            for kind in ERRORS:
                pair = errors.of(row, language, kind)
                if pair is None:
                    continue
                made[kind] += 1
                right, wrong = pair
                assert right in record.texts[language]
                assert wrong != right
                assert pair == Errors(scenes).of(row, language, kind)
                if kind == "swapped":
                    other = next(k for k in range(40) if wrong in scenes.record(k).texts[language])
                    texts = [t for spoken in scenes.record(other).texts.values() for t in spoken]
                    claim = scenes.record(other).columns["claims"][texts.index(wrong)]
                    assert not holds(claim, scenes.scene(row))
    assert made["swapped"] > 70
    assert made["name"] > 60
    assert min(made.values()) > 5
    assert Errors(scenes, seed=1).of(0, "en", "swapped") != errors.of(0, "en", "swapped")


def test_a_swapped_report_names_no_finding_of_the_row():
    texts = [{"en": [f"report {k}"]} for k in range(12)]
    columns = [{"finding": "Edema" if k % 2 else "Pneumonia, Edema" if k % 3 else "Fracture"} for k in range(12)]
    errors = Errors(Pairs(texts, columns=columns))
    chosen = [errors.of(row, "en", "swapped") for row in range(12)]
    assert all(pair is not None for pair in chosen)
    fractures = {f"report {k}" for k in range(12) if columns[k]["finding"] == "Fracture"}
    for row, pair in enumerate(chosen):
        assert (pair[1] in fractures) != (f"report {row}" in fractures)


def test_rows_with_faults_keep_their_reports_and_say_what_is_wrong():
    scenes = Scenes(count=30, side=32)
    rows = with_faults(scenes, 0.5)
    wrong = 0
    for row in range(30):
        record = rows.record(row)
        assert record.texts == scenes.record(row).texts
        for language, texts in record.texts.items():
            faulty, kinds = record.columns["faulty"][language], record.columns["errors"][language]
            differ = [text_id(a) != text_id(b) for a, b in zip(texts, faulty, strict=True)]
            assert differ == [kind != "" for kind in kinds]
            assert sum(differ) <= 1
            wrong += any(differ)
    assert 15 <= wrong <= 45  # of sixty
    assert rows.fingerprint not in (scenes.fingerprint, with_faults(scenes, 0.6).fingerprint)
    assert all(not any(with_faults(scenes, 1e-9).record(row).columns["errors"]["en"]) for row in range(10))


def test_faults_read_the_corpus_once_for_all_languages_and_not_before_a_name_is_asked_for(monkeypatch):
    scenes, plain, read = Scenes(count=300, side=32), Scenes.record, []
    monkeypatch.setattr(Scenes, "record", lambda self, row: read.append(row) or plain(self, row))
    rows, errors = with_faults(scenes, 1.0), Errors(scenes)
    assert errors.of(0, "en", "negation")
    assert len(read) == 1
    for row in range(4):
        assert all(rows.record(row).columns["errors"][language] != [""] for language in scenes.languages)
    names = {language: errors.of(1, language, "name") for language in scenes.languages}
    assert all(names.values())
    assert read.count(299) <= 3  # by each of both once, and where its report is taken for another's
    assert len(read) < 2 * 300 + 200


def test_a_caption_of_the_row_itself_is_no_swap():
    corpus = Pairs([{"en": ["the same"]}, {"en": ["the same"]}, {"en": ["the  same"]}])
    assert all(Errors(corpus).of(row, "en", "swapped") is None for row in range(3))
    assert Errors(corpus).of(0, "zh", "location") is None
    assert len(corpus.relevance([0], [Caption("the same", "en", text_id("the same"), 1, 0)]).images)


# ---- findings


def labelled(*columns) -> Pairs:
    return Pairs([{"en": ["x"]}] * len(columns), columns=list(columns))


def test_findings_are_read_from_the_columns_there_are():
    corpus = labelled(
        {"findings": {"Edema": 1, "Fracture": 0, "Nodule": -1}},
        {"findings": {"Edema": 1, "Fracture": None}},
        {"findings": ["Fracture"]},
        {"findings": None},
    )
    findings = findings_of(corpus)
    assert findings.names == ("Edema", "Fracture", "Nodule")
    assert findings.labels.tolist() == [[1, 0, -1], [1, 0, 0], [0, 1, 0], [-1, -1, -1]]
    other = findings_of(labelled({"finding": "COVID-19, ARDS"}, {"finding": "No Finding"}, {"finding": "todo"}))
    assert other.names == ("ARDS", "COVID-19")
    assert other.labels.tolist() == [[1, 1], [0, 0], [-1, -1]]
    tags = findings_of(labelled({"tags": {"en": ["cat"], "zh": ["猫"]}}, {"tags": ["dog"]}), "zh")
    assert tags.names == ("dog", "猫")
    assert tags.labels.tolist() == [[0, 1], [1, 0]]
    with pytest.raises(UserError, match='add a column "findings"'):
        findings_of(labelled({}, {}))
    with pytest.raises(UserError, match="a finding is 'yes'"):
        findings_of(labelled({"findings": {"Edema": "yes"}}))
    with pytest.raises(UserError, match="must hold names"):
        findings_of(labelled({"findings": 3}))


def test_prompts_come_from_a_file_or_from_names(tmp_path):
    ((there, gone),) = prompts_of(["edema"], "en")
    assert there[1] == "There is edema."
    assert gone == ["No edema."]
    path = tmp_path / "findings.json"
    path.write_text(json.dumps({"Edema": {"en": {"positive": ["Wet."], "negative": ["Dry."]}}}))
    assert prompts_of(["Edema", "x"], "en", path) == [(["Wet."], ["Dry."]), prompts_of(["x"], "en")[0]]
    with pytest.raises(UserError, match="prompts in zh for none of the 1"):
        prompts_of(["Edema"], "zh", path)
    for content in ("[1]", "{", '{"a": {"en": {"positive": []}}}', '{"a": {"en": {"positive": ["x"]}}}', '{"a": 1}'):
        path.write_text(content)
        with pytest.raises(UserError, match="is not"):
            prompts_of(["a"], "en", path)
    with pytest.raises(UserError, match="cannot be read as prompts"):
        prompts_of(["a"], "en", tmp_path / "none.json")
