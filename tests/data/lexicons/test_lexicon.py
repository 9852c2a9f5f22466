"""Lexicons: linking by the longest match against a slow version, files there and back, sources, hostile copies."""

import json
import pickle
import random

import numpy as np
import pytest

from tests.fuzzing import mutate
from tuwen.data.chinese import has_han, segment
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.corpora.scenes.things import NAMES, THINGS
from tuwen.data.corpus import normalise
from tuwen.data.lexicons.files import TRIPLES, VECTORS, read_triples, save_lexicon, saved_lexicon
from tuwen.data.lexicons.lexicon import Lexicon, LexiconMaker
from tuwen.data.lexicons.open import open_lexicon
from tuwen.data.spans import KINDS, find_spans
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError

TABLE = """\
# fruit of the shop
apple\tname:en\tapple
apple\tname:zh\t苹果
gala\tname:en\tRoyal Gala
gala\tname:en\tGala
gala\tname:zh\t嘎啦果
gala\tis a\tapple
horse\tname\t马
juice\tname:en\tapple juice
juice\tmade of\tapple
berry\tname:en\tberry
"""


@pytest.fixture
def lexicon(tmp_path) -> Lexicon:
    path = tmp_path / "fruit.tsv"
    path.write_text("\ufeff" + TABLE, encoding="utf-8")
    return read_triples(path)


def linked(lexicon: Lexicon, text: str) -> list[tuple[str, str]]:
    text = normalise(text)
    return [(text[m.start : m.end], lexicon.ids[m.row]) for m in lexicon.mentions(text)]


def test_a_file_of_triples_by_hand(lexicon):
    assert lexicon.ids == ("apple", "gala", "horse", "juice", "berry")
    assert lexicon.names[1] == {"en": ("Royal Gala", "Gala"), "zh": ("嘎啦果",)}
    assert lexicon.names[2] == {"zh": ("马",)}  # the script told the language
    assert lexicon.relations == ("is a", "made of")
    assert lexicon.edges.tolist() == [[1, 0, 0], [3, 1, 0]]
    assert (lexicon.name(1), lexicon.name(1, "zh"), lexicon.name(2)) == ("Royal Gala", "嘎啦果", "马")


def test_linking_by_hand(lexicon):
    assert linked(lexicon, "Two ROYAL GALA apples beside apple juice") == [
        ("ROYAL GALA", "gala"),
        ("apples", "apple"),
        ("apple juice", "juice"),
    ]
    assert linked(lexicon, "pineapple, applesauce, Galas and berries") == [("Galas", "gala"), ("berries", "berry")]
    assert linked(lexicon, "一匹馬旁邊的蘋果和红苹果") == [("馬", "horse"), ("蘋果", "apple"), ("苹果", "apple")]
    assert linked(lexicon, "马上就来") == []  # a character inside a word is no name
    assert linked(lexicon, "") == []


def slowly(lexicon: Lexicon, text: str) -> list[tuple[int, int, int]]:
    """Every stretch of the text against every name, longest first, from the left; names as they are written."""
    names = {name: row for row, by in reversed(list(enumerate(lexicon.names))) for all in by.values() for name in all}
    words = {(word.start, word.end) for word in segment(text)}
    letters = [character.isalnum() and not has_han(character) for character in text] + [False]
    mentions, place = [], 0
    while place < len(text):
        for end in range(len(text), place, -1):
            piece = text[place:end]
            cut = (place and letters[place - 1] and letters[place]) or (letters[end - 1] and letters[end])
            alone = len(piece) > 1 or not has_han(piece) or (place, end) in words
            if piece in names and alone and not cut:
                mentions.append((place, end, names[piece]))
                place = end - 1
                break
        place += 1
    return mentions


def test_linking_equals_every_stretch_against_every_name():
    maker = LexiconMaker()
    for name in ("ab", "ab cd", "cd", "c", "红苹果", "苹果", "果汁", "马", "果", "苹果 ab"):
        maker.name(f"id {name}", name, "zh")  # no language of plurals
    lexicon, draw = maker.lexicon("made"), random.Random(4)
    pieces = ["ab", " ", "cd", "c", "红", "苹果", "果", "汁", "马", "上", "，"]
    texts = [normalise("".join(draw.choices(pieces, k=draw.randrange(9)))) for _ in range(400)]
    assert sum(len(slowly(lexicon, text)) for text in texts) > 300
    for text in texts:
        assert [tuple(mention) for mention in lexicon.mentions(text)] == slowly(lexicon, text), text


def test_a_name_of_two_entities_is_the_first_ones():
    maker = LexiconMaker()
    maker.name("fruit", "orange", "en")
    maker.name("colour", "orange", "en")
    maker.name("glasses", "glass", "en")
    maker.name("plural", "glasses", "en")  # a name as it is written goes before a plural that was made
    assert linked(maker.lexicon("made"), "orange glasses") == [("orange", "fruit"), ("glasses", "plural")]


def test_files_there_and_back(lexicon, tmp_path):
    vectors = np.arange(10, dtype=np.float32).reshape(5, 2)
    with_vectors = Lexicon(lexicon.ids, lexicon.names, lexicon.relations, lexicon.edges, vectors)
    (tmp_path / "out").mkdir()
    save_lexicon(with_vectors, tmp_path / "out")
    back = saved_lexicon(tmp_path / "out")
    assert back.digest == lexicon.digest
    assert back.ids == lexicon.ids
    assert back.names == lexicon.names
    assert np.array_equal(back.vectors, vectors)
    assert saved_lexicon(tmp_path) is None
    assert pickle.loads(pickle.dumps(back)).digest == back.digest  # between processes of our own
    assert lexicon.among([1, 0]).digest != lexicon.digest


def test_among_keeps_the_edges_between(lexicon):
    few = lexicon.among([3, 0])
    assert few.ids == ("juice", "apple")
    assert few.relations == ("made of",)
    assert few.edges.tolist() == [[0, 0, 1]]
    assert len(lexicon.among([4]).edges) == 0


def test_counts_by_text(lexicon):
    texts = ["an apple, an apple", "Gala apples", "nothing"]
    assert lexicon.counts(texts).tolist() == [2, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("apple\tis a", "is no triple"),
        ("a\tb\tc\td", "is no triple"),
        ("apple\t \tfruit", "is no triple"),
        ("no tabs", "is no triple"),
        ("# nothing", "names no entity"),
        ("x" * 5000, "is no triple"),
    ],
)
def test_lines_that_are_no_triples(tmp_path, line, why):
    path = tmp_path / "bad.tsv"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(UserError, match=why) as error:
        open_lexicon(path)
    assert len(str(error.value)) < 400


def test_vectors_of_others_are_refused(lexicon, tmp_path):
    save_lexicon(Lexicon(lexicon.ids, lexicon.names, vectors=np.zeros((4, 2), np.float32)), tmp_path)
    with pytest.raises(UserError, match="none of 5 entities"):
        saved_lexicon(tmp_path)
    save_lexicon(Lexicon(lexicon.ids, lexicon.names, vectors=np.full((5, 2), np.nan, np.float32)), tmp_path)
    with pytest.raises(UserError, match="not finite"):
        saved_lexicon(tmp_path)
    (tmp_path / VECTORS).write_bytes(b"junk")
    with pytest.raises(UserError, match="cannot be read"):
        saved_lexicon(tmp_path)


def test_mutated_files_end_in_a_line_or_a_lexicon(tmp_path):
    draw, path, outcomes, messages = random.Random(6), tmp_path / "lexicon.tsv", set(), []
    for _ in range(300):
        path.write_bytes(mutate(TABLE.encode(), draw))
        try:
            lexicon = read_triples(path)
        except UserError as error:
            outcomes.add("refused")
            messages.append(str(error))
            continue
        outcomes.add("read")
        lexicon.mentions("Two Royal Gala apples, 马和苹果")
        assert (lexicon.edges[:, [0, 2]] < len(lexicon)).all()
    assert outcomes == {"read", "refused"}
    assert all("\n" not in message and len(message) < 500 for message in messages)


def test_umls_layout(tmp_path):
    def row(count: int, **cells: str) -> str:
        return "|".join(cells.get(f"c{k}", "") for k in range(count)) + "|"

    names = [
        row(18, c0="C01", c1="ENG", c14="Pneumonia", c16="N"),
        row(18, c0="C01", c1="CHI", c14="肺炎", c16="N"),
        row(18, c0="C01", c1="ENG", c14="Old word", c16="O"),  # suppressed
        row(18, c0="C02", c1="ENG", c14="Lung", c16="N"),
        row(18, c0="C03", c1="XXX", c14="of no language here", c16="N"),
    ]
    relations = [
        row(16, c0="C02", c3="RO", c4="C01", c7="has_finding_site", c14="N"),
        row(16, c0="C01", c3="PAR", c4="C02", c14="N"),
        row(16, c0="C01", c3="RO", c4="C03", c14="N"),
        row(16, c0="C01", c3="SY", c4="C01", c14="N"),
        row(16, c0="C01", c3="RO", c4="C02", c14="Y"),
    ]
    (tmp_path / "MRCONSO.RRF").write_text("\n".join(names) + "\n", encoding="utf-8")
    (tmp_path / "MRREL.RRF").write_text("\n".join(relations) + "\n", encoding="utf-8")
    lexicon = open_lexicon(tmp_path)
    assert lexicon.ids == ("C01", "C02")
    assert lexicon.names[0] == {"en": ("Pneumonia",), "zh": ("肺炎",)}
    # what the second concept is to the first: pneumonia has its finding site in the lung, the lung is a PAR of it
    assert lexicon.relations == ("has_finding_site", "PAR")
    assert lexicon.edges.tolist() == [[0, 0, 1], [1, 1, 0]]
    (tmp_path / "MRCONSO.RRF").write_text("C01|ENG\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"line 1: .* has not the 17 fields"):
        open_lexicon(tmp_path)


def test_classes_of_products(tmp_path):
    entries = [{"name": "Gala", "coarse": "Apple"}, {"name": "Avocado", "coarse": "Avocado"}, {"name": "奶"}]
    (tmp_path / "classes.json").write_text(json.dumps(entries), encoding="utf-8")
    lexicon = open_lexicon(tmp_path)
    assert lexicon.ids == ("Gala", "Apple", "Avocado", "奶")
    assert lexicon.edges.tolist() == [[0, 0, 1]]
    for bad in ("[1]", '{"a": 1}', '[{"name": 3}]', "[", '[{"name": "a", "coarse": []}]'):
        (tmp_path / "classes.json").write_text(bad, encoding="utf-8")
        with pytest.raises(UserError, match=r"classes\.json"):
            open_lexicon(tmp_path)


def test_the_graphs_that_come_with_data():
    scenes = open_lexicon("scenes")
    rows = {id: row for row, id in enumerate(scenes.ids)}
    heads = set(scenes.edges[:, 0].tolist())
    assert all(rows[name] in heads for name in NAMES)  # every thing is in a group
    parents = {scenes.ids[head]: scenes.ids[tail] for head, _, tail in scenes.edges.tolist()}
    assert parents["dog"] == "mammal"
    assert parents["mammal"] == "animal"
    assert parents["alarm clock"] == "clock"
    findings = open_lexicon("findings")
    assert linked(findings, "Small pleural effusions, no pneumothorax. 双肺磨玻璃影，心影增大") == [
        ("pleural effusions", "pleural effusion"),
        ("pneumothorax", "pneumothorax"),
        ("磨玻璃影", "ground glass opacity"),
        ("心影增大", "cardiomegaly"),
    ]
    with pytest.raises(UserError, match="no lexicon; give a file of triples"):
        open_lexicon("nowhere")


def test_captions_of_scenes_name_what_they_show():
    """Every thing that a scene's own tags say is linked in a caption that has its name, in English and Chinese."""
    lexicon, corpus = open_lexicon("scenes"), Scenes(count=80, side=32)
    for row in range(80):
        for language, texts in corpus.record(row).texts.items():
            for text in texts:
                linked_things = {lexicon.ids[m.row] for m in lexicon.mentions(normalise(text))} & set(NAMES)
                for name in corpus.record(row).columns["tags"]["en"]:
                    word = THINGS[name].chinese if language == "zh" else name
                    if len(word) > 1 and word in text:
                        assert name in linked_things, (text, name)


def test_entity_spans_are_rows_of_the_lexicon(lexicon, tmp_path):
    texts = ["Two Royal Gala apples", "红苹果和马", "nothing here", "apple " * 30]
    tokenizer = Tokenizer.train([*texts, "红苹果和马", *"abcdefghijklmnopqrstuvwxyz"], size=200)
    before = tokenizer.digest
    tokenizer.lexicon = lexicon
    assert tokenizer.vocabulary.lexicon is lexicon
    assert tokenizer.digest != before
    ids, _ = tokenizer.encode(texts, 16)
    spans = find_spans(texts, tokenizer, 16, ["entity"])
    read = [
        (tokenizer.decode(ids[s, a:b][None])[0], lexicon.ids[i])
        for s, a, b, i in zip(*(x.tolist() for x in (spans.sequence, spans.start, spans.end, spans.id)), strict=True)
        if s < 2
    ]
    assert read == [("royal gala", "gala"), ("apples", "apple"), ("苹果", "apple"), ("马", "horse")]
    assert set(spans.kind.tolist()) == {KINDS.index("entity")}
    assert int(spans.end.max()) <= 15
    tokenizer.save(tmp_path / "tokenizer.json")
    assert (tmp_path / TRIPLES).is_file()
    assert Tokenizer.load(tmp_path).lexicon.digest == lexicon.digest
    assert pickle.loads(pickle.dumps(tokenizer)).digest == tokenizer.digest
