"""Radiology's and the shop's public sets: columns, studies of two pictures, sections of reports, and spoilt copies."""

import gzip
import time

import pytest

from tests.data.made import picture, put
from tests.data.published import MAKERS
from tuwen.data.corpora import lines
from tuwen.data.corpora.published import formats
from tuwen.data.corpora.reports import labels_of, report_sections
from tuwen.data.open import open_corpus, splits_of
from tuwen.data.private import SHOW
from tuwen.errors import UserError

MEDICAL = {"chexpert", "mimic-cxr", "mimic-cxr-studies", "open-i", "open-i-studies", "roco", "roco-v2"}
MEDICAL |= {"slake", "vqa-med-2019", "vqa-rad"}


@pytest.mark.parametrize("name", sorted(formats()))
def test_medical_sets_mark_themselves_private(name, tmp_path):
    MAKERS[name](tmp_path)
    corpus = open_corpus(f"{name}:{tmp_path}", splits_of(f"{name}:{tmp_path}")[0], "skip")
    assert corpus.private == (name in MEDICAL)


def columns_of(name, folder, split="train", row=0) -> dict:
    MAKERS[name](folder)
    return dict(open_corpus(f"{name}:{folder}", split).record(row).columns)


def test_columns(tmp_path):
    mimic = columns_of("mimic-cxr", tmp_path / "mimic", row=1)
    assert (mimic["study"], mimic["patient"], mimic["view"]) == ("50414267", "10000032", "PA")
    assert mimic["sections"] == ["findings", "impression"]
    assert {name: label for name, label in mimic["findings"].items() if label is not None} == {
        "Cardiomegaly": 1,
        "Edema": -1,
        "Lung Opacity": 0,
    }
    assert len(mimic["findings"]) == 14
    xray = columns_of("chexpert", tmp_path / "chexpert", "val", 1)
    assert (xray["patient"], xray["study"], xray["view"]) == ("patient00001", "patient00001/study1", "Lateral")
    assert (xray["findings"]["No Finding"], xray["findings"]["Cardiomegaly"]) == (1, 0)
    assert "68" not in str(xray)
    assert "Female" not in str(xray)
    assert columns_of("open-i", tmp_path / "open")["mesh"] == ["Lung/hypoinflation", "Opacity"]
    assert columns_of("open-i", tmp_path / "open", row=2)["sections"] == ["impression"]
    assert columns_of("roco", tmp_path / "roco")["concepts"] == ["C4300092", "C0040395"]
    assert columns_of("roco-v2", tmp_path / "roco2", "test")["concepts"] == ["C0040405", "C0817096"]
    query = columns_of("product1m", tmp_path / "product", "val")
    assert query["products"] == ["AHC 黄金面霜", "AHC 黄金水", "AHC 黄金水"]
    assert (query["item"], query["url"][:22]) == ("623174602918", "https://img.alicdn.com")
    assert "products" not in columns_of("product1m", tmp_path / "product")
    item = columns_of("m5product", tmp_path / "m5", "gallery")
    assert (item["products"], item["attributes"]) == (["7"], {"品牌": "AHC", "颜色": "金"})


def test_studies_are_two_pictures_frontal_first(tmp_path):
    for name, greys, views in (("mimic-cxr-studies", [40, 20], ["PA", "LATERAL"]), ("open-i-studies", [30, 40], None)):
        MAKERS[name](tmp_path / name)
        corpus = open_corpus(f"{name}:{tmp_path / name}", "train")
        assert corpus.pictures == 2
        assert [int(shown.float().mean().round()) for shown in corpus.shown(0)] == greys
        assert corpus.record(0).columns.get("view") == views


def test_a_report_of_both_pictures_of_a_study_is_right_for_both(tmp_path):
    MAKERS["mimic-cxr"](tmp_path)
    gallery = open_corpus(f"mimic-cxr:{tmp_path}", "train").gallery("en")
    assert [gallery.relevance.images_of(k).tolist() for k in range(4)] == [[0, 1], [0, 1], [2], [2]]


def test_pictures_of_a_study_stay_in_one_split(tmp_path):
    MAKERS["open-i"](tmp_path)
    studies = [
        {open_corpus(f"open-i:{tmp_path}", split).record(row).columns["study"] for row in range(2)}
        for split in splits_of(f"open-i:{tmp_path}")
    ]
    assert studies == [{"CXR6"}, {"CXR1"}]


def test_sections_of_reports():
    """As MIMIC-CXR writes them; several of one name are one; capitals without a colon are no header."""
    report = (
        " FINAL REPORT\n FINDINGS:  PA and LATERAL\n views. \n\n IMPRESSION: 1. Clear.\n\n RECOMMENDATION(S): Come\n"
    )
    assert report_sections(report) == {"findings": "PA and LATERAL views.", "impression": "1. Clear."}
    assert report_sections(report.replace("\n", "\r\n")) == report_sections(report)
    assert report_sections("FINDINGS AND IMPRESSION: Clear.\nFINDINGS: No edema.") == {"findings": "Clear. No edema."}
    assert report_sections("FINAL REPORT\n\nFirst words.\n\nLast\nwords.\n") == {"findings": "Last words."}
    assert report_sections("IMPRESSION:\n\nFINDINGS:   \n INDICATION: cough") == {}
    assert report_sections(" \n\n FINAL REPORT \n") == {}
    began = time.monotonic()
    report_sections("A" * 200_000 + " (" * 100_000 + "\nIMPRESSION: fine")
    assert time.monotonic() - began < 2


def test_labels():
    assert labels_of({"Edema": "-1.0", "Fracture": "", "Age": "68"}) == {"Edema": -1, "Fracture": None}
    with pytest.raises(ValueError, match=r"Edema is '2\.0'; a label is 1\.0, 0\.0, -1\.0 or empty"):
        labels_of({"Edema": "2.0"})


def test_spoilt_tables_of_mimic(tmp_path, monkeypatch):
    """A label that is none, a picture without a split, a study without a report, numbers that are paths, a cut .gz."""
    monkeypatch.setenv(SHOW, "1")  # what is wrong is told in full where it is asked for
    location = f"mimic-cxr:{tmp_path}"
    for file, old, new, reason in (
        ("mimic-cxr-2.0.0-chexpert.csv", ",1.0,", ",2.0,", "wrong type"),
        ("mimic-cxr-2.0.0-metadata.csv", "4e3840100,", "4e3840199,", "no split"),
        ("mimic-cxr-2.0.0-metadata.csv", ",10000032,50414267,", ",10000032,../../x,", "broken row"),
        ("mimic-cxr-2.0.0-metadata.csv", ",LATERAL,", ",", "broken row"),
        ("files/p10/p10000032/s50414267.txt", "", None, "no report"),
        ("files/p10/p10000032/s50414267.txt", "", "\0", "unreadable"),
        ("files/p10/p10000032/s50414267.txt", "", " FINAL REPORT\n", "empty text"),
        ("files/p10/p10000032/s50414267.txt", "", "x" * 2**21, "text too long"),
    ):
        MAKERS["mimic-cxr"](tmp_path)
        path = tmp_path / file
        if new is None:
            path.unlink()
        else:
            path.write_text(path.read_text().replace(old, new, 1) if old else new)
        corpus = open_corpus(location, "train", "skip")
        assert corpus.skipped[reason] >= 1, (file, new, corpus.skipped)
        assert 1 <= len(corpus) <= 3
    MAKERS["mimic-cxr"](tmp_path)
    packed = tmp_path / "mimic-cxr-2.0.0-split.csv.gz"
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(UserError):
        open_corpus(location, "train", "stop")
    packed.write_bytes(b"dicom_id,study_id,subject_id,split\n")
    with pytest.raises(UserError, match=r"breaks off after line 0 .*; copy it again"):
        open_corpus(location, "train", "stop")
    packed.unlink()
    with pytest.raises(UserError, match=r"no file mimic-cxr-2\.0\.0-split\.csv or mimic-cxr-2\.0\.0-split\.csv\.gz"):
        splits_of(location)


def test_a_gz_that_grows_without_bound_is_left_off(tmp_path, monkeypatch):
    MAKERS["mimic-cxr"](tmp_path)
    packed = tmp_path / "mimic-cxr-2.0.0-split.csv.gz"
    packed.write_bytes(packed.read_bytes() + gzip.compress(b"a,b,c,d\n" * 200_000))
    assert len(packed.read_bytes()) < 10_000
    monkeypatch.setattr(lines, "MOST_UNPACKED", 1000)
    corpus = open_corpus(f"mimic-cxr:{tmp_path}", "train", "skip")
    assert corpus.skipped["truncated"] == 1
    assert len(corpus) == 3


def test_spoilt_xml_of_open_i(tmp_path):
    bomb = '<!DOCTYPE a [<!ENTITY b "bbbb">]><eCitation><uId id="CXR1"/></eCitation>'
    twice = '<eCitation><uId id="CXR1"/><parentImage id="a"/><parentImage id="a"/></eCitation>'
    for xml, reason in (
        (bomb, "broken XML"),
        ("<eCitation/>", "broken XML"),
        (twice, "broken XML"),
        ('<eCitation><uId id="../x"/></eCitation>', "broken XML"),
        ('<eCitation><uId id="CXR1"/><parentImage id="a"/></eCitation>', "empty text"),
        ("", "broken XML"),
    ):
        MAKERS["open-i"](tmp_path)
        put(tmp_path, "ecgen-radiology/1.xml", xml)
        corpus = open_corpus(f"open-i:{tmp_path}", "train", "skip")
        assert (len(corpus), dict(corpus.skipped)) == (1, {reason: 1})


def test_spoilt_lines_of_products(tmp_path):
    good = "1#####题#####http://i/1.jpg#####http://j/1.jpg"
    for bad, reason in (
        ("1#####题#####http://i/1.jpg", "broken row"),
        (good + "#####a#;#", "broken row"),
        (good + "#####" + "x" * 1001, "broken row"),
        (good.replace("http://j", "file:///etc"), "broken row"),
        (good.replace("1#####题", "../1#####题"), "broken row"),
        (good.replace("题", " "), "empty text"),
        (good + "#####a#####b", "broken row"),
    ):
        MAKERS["product1m"](tmp_path)
        path = tmp_path / "product1m_train_ossurl_v2.txt"
        path.write_text(path.read_text() + bad + "\n")
        corpus = open_corpus(f"product1m:{tmp_path}", "train", "skip")
        assert (len(corpus), dict(corpus.skipped)) == (1, {reason: 1}), bad
    for old, new in (
        ("品牌#:#AHC", "品牌#:#AHC#:#x"),
        ('"狗粮0"', "7"),
        ("600000", "../600000"),
        ('{"title"', '{"label": ["7", null], "title"'),
    ):
        MAKERS["m5product"](tmp_path / "m5")
        path = tmp_path / "m5/train.json"
        path.write_text(path.read_text().replace(old, new))
        with pytest.raises(UserError, match=r"train\.json"):
            open_corpus(f"m5product:{tmp_path / 'm5'}", "train")


def test_an_item_may_be_query_and_gallery(tmp_path):
    MAKERS["product1m"](tmp_path)
    gallery = tmp_path / "product1m_gallery_ossurl_v2.txt"
    gallery.write_text(gallery.read_text() + (tmp_path / "product1m_test_ossurl_v2.txt").read_text())
    location = f"product1m:{tmp_path}"
    ids = [[open_corpus(location, s).record(k).id for k in range(n)] for s, n in (("test", 1), ("gallery", 3))]
    assert ids == [["test-613221770856"], [f"gallery-{k}" for k in (613221770857, 613221770858, 613221770856)]]


def test_labels_of_a_release_without_its_pictures(tmp_path):
    MAKERS["chexpert"](tmp_path)
    next(tmp_path.rglob("view2_lateral.jpg")).unlink()
    assert sum(open_corpus(f"chexpert:{tmp_path}", split, "skip").skipped["missing"] for split in ("train", "val")) == 1
    put(tmp_path, "other/view2_lateral.jpg", picture(3))
    assert sum(open_corpus(f"chexpert:{tmp_path}", split, "skip").skipped["missing"] for split in ("train", "val")) == 1
