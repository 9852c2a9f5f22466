"""Spans: the segmentation of the BagFormer card by hand, words that partition the tokens, phrases and entities by
language, and that what stands beside a text, or how long it may be, moves none of its spans."""

import random
from itertools import product

import pytest
import torch

from tuwen.data.corpora.scenes import Scenes
from tuwen.data.corpus import all_texts, normalise, text_id
from tuwen.data.lexicons.files import read_dictionary
from tuwen.data.loader import DataConfig, Loader
from tuwen.data.needs import check_needs, check_reads
from tuwen.data.order import Order
from tuwen.data.spans import KINDS, backward_maximum_matching, entities, find_spans, phrases, span_id, words
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError
from tuwen.systems.system import Needs, Reads

MIXED = "iPhone 14手机壳 and a café: 很大的猫！"


@pytest.fixture(scope="module")
def scenes() -> list[str]:
    corpus = Scenes(count=60, side=32)
    return [text for row in range(60) for text in all_texts(corpus.record(row))]


@pytest.fixture(scope="module", params=["wordpiece", "unigram"])
def tokenizer(request, scenes) -> Tokenizer:
    return Tokenizer.train([*scenes, MIXED], kind=request.param, size=400)


def said(text: str, runs) -> list[str]:
    return [text[start:end] for start, end in runs]


def test_card_fixture_of_backward_maximum_matching():
    """BagFormer card, check 1: 101 is [CLS], 102 is [SEP]."""
    entries = {(1, 2), (1, 2, 3), (5, 6, 7), (8, 9), (10, 11)}
    for ids, want in (
        ([101, 1, 2, 3, 4, 102], [(0, 1), (1, 4), (4, 5), (5, 6)]),
        ([101, 5, 6, 7, 102], [(0, 1), (1, 4), (4, 5)]),
        ([101, 8, 9, 10, 11, 102], [(0, 1), (1, 3), (3, 5), (5, 6)]),
    ):
        assert backward_maximum_matching(ids, entries) == want


def test_matching_goes_backward_and_takes_the_longest():
    entries = {(1, 2), (2, 3), (3, 4, 5), (4, 5)}
    assert backward_maximum_matching([1, 2, 3], entries) == [(0, 1), (1, 3)]  # forward would take 1 2 first
    assert backward_maximum_matching([2, 3, 4, 5], entries) == [(0, 1), (1, 4)]
    assert backward_maximum_matching([], entries) == []
    assert backward_maximum_matching([1, 2], set()) == [(0, 1), (1, 2)]
    starts = [True, True, False]  # 3 goes on with the word that 2 begins
    assert backward_maximum_matching([1, 2, 3], {(1, 2)}, starts) == [(0, 1), (1, 2), (2, 3)]


def test_pieces_partition_any_ids_and_are_entries():
    draw = random.Random(3)
    entries = {(a, b) for a, b in product(range(4), repeat=2) if (a + b) % 3 == 0} | {(1, 2, 3), (0, 0, 0, 1)}
    for _ in range(200):
        ids = [draw.randrange(5) for _ in range(draw.randrange(12))]
        pieces = backward_maximum_matching(ids, entries)
        assert [k for start, end in pieces for k in range(start, end)] == list(range(len(ids)))
        assert all(end - start == 1 or tuple(ids[start:end]) in entries for start, end in pieces)
        assert pieces == slowly(ids, entries)


def slowly(ids: list[int], entries: set) -> list[tuple[int, int]]:
    """The rule as a recursion on the last piece."""
    if not ids:
        return []
    sizes = [size for size in range(len(ids), 0, -1) if size == 1 or tuple(ids[-size:]) in entries]
    return [*slowly(ids[: -sizes[0]], entries), (len(ids) - sizes[0], len(ids))]


def test_words_phrases_and_entities_in_english_and_chinese():
    english = "There is an alarm clock and two very large red apples on a blue background."
    assert said(english, phrases(english)) == ["alarm clock", "two very large red apples", "blue background"]
    assert said(english, entities(english)) == ["alarm clock", "apples", "background"]
    chinese = "红色背景上有一只很大的猫和两只狗，苹果在闹钟的左边。"
    assert said(chinese, ((w.start, w.end) for w in words(chinese)))[:7] == [
        "红色",
        "背景",
        "上",
        "有",
        "一只",
        "很大",
        "的",
    ]
    assert said(chinese, phrases(chinese)) == ["红色背景", "很大的猫", "两只狗", "苹果", "闹钟"]
    assert said(chinese, entities(chinese)) == ["红色背景", "猫", "狗", "苹果", "闹钟"]
    assert said(MIXED, entities(MIXED)) == ["iPhone", "手机壳", "café", "猫"]


@pytest.mark.parametrize("text", ["", " ", "!?", "👍", "ครับ", "ねこがいます", "a\u0301b", "的的的", "-- '' --", "𠀀𠀁"])
def test_odd_texts_have_words_without_gaps(text):
    text = normalise(text)
    covered = [k for word in words(text) for k in range(word.start, word.end)]
    assert covered == [k for k, letter in enumerate(text) if not letter.isspace()]
    assert all(0 <= start < end <= len(text) for start, end in phrases(text))


def test_words_partition_the_content_tokens(tokenizer, scenes):
    texts = [*scenes[:40], MIXED, "", "unseenword", "…"]
    _ids, mask = tokenizer.encode(texts, 64)
    spans = find_spans(texts, tokenizer, 64, ["word"])
    for row in range(len(texts)):
        mine = spans.sequence == row
        covered = [k for a, b in zip(spans.start[mine], spans.end[mine], strict=True) for k in range(a, b)]
        assert covered == list(range(1, int(mask[row].sum()) - 1)), texts[row]


def test_a_word_of_many_pieces_is_one_word():
    tokenizer = Tokenizer.train(
        ["b u t e r f l y , 蝴 蝶", *("".join(p) for p in product("buterfly", repeat=3))], size=100
    )
    pieces = tokenizer.pieces("butterfly, 蝴蝶")
    assert len(pieces) > 5
    spans = find_spans(["butterfly, 蝴蝶"], tokenizer, 32, ["word"])
    assert (spans.end - spans.start).tolist() == [len(pieces) - 3, 1, 2]
    assert spans.id.tolist() == [span_id("Butterfly"), span_id(","), span_id("蝴蝶")]


def test_kinds_ids_and_places_are_what_the_tokens_say(tokenizer):
    text = "There is an ALARM clock and two red apples"
    spans = find_spans([text], tokenizer, 64, ["phrase", "entity"])
    found = list(zip(spans.kind.tolist(), spans.id.tolist(), strict=True))
    phrase, entity = KINDS.index("phrase"), KINDS.index("entity")
    want = [(phrase, "alarm clock"), (phrase, "two red apples"), (entity, "Alarm Clock"), (entity, "apples")]
    assert found == [(kind, span_id(words)) for kind, words in want]
    assert spans.of(entity).id.tolist() == [span_id("alarm clock"), span_id("apples")]
    pieces = ["[CLS]", *tokenizer.pieces(text)]
    first = "".join(pieces[spans.start[0] : spans.end[0]]).replace("▁", "").replace("##", "").lower()
    assert first == "alarmclock"


def test_a_text_has_the_same_spans_alone_and_beside_others(tokenizer, scenes):
    texts = [*scenes[:10], MIXED]
    together = find_spans(texts, tokenizer, 64, KINDS)
    for row, text in enumerate(texts):
        alone, here = find_spans([text], tokenizer, 64, KINDS), together.select(torch.tensor([row]))
        for name in ("sequence", "start", "end", "id", "kind"):
            assert torch.equal(getattr(alone, name), getattr(here, name)), (text, name)


def test_what_is_cut_off_leaves_whole_phrases_and_the_words_still_there(tokenizer):
    text = "a red apple and a very large alarm clock"
    whole = find_spans([text], tokenizer, 64, KINDS)
    last = int(whole.end.max())
    for length in range(3, last + 1):
        cut = find_spans([text], tokenizer, length, KINDS)
        kept = {(k, a, b) for k, a, b in zip(cut.kind.tolist(), cut.start.tolist(), cut.end.tolist(), strict=True)}
        full = list(zip(whole.kind.tolist(), whole.start.tolist(), whole.end.tolist(), strict=True))
        want = {(k, a, b) for k, a, b in full if b <= length - 1}
        want |= {(k, a, length - 1) for k, a, b in full if k == 0 and a < length - 1 < b}
        assert kept == want


def test_a_dictionary_is_looked_up_kept_with_the_tokenizer_and_never_inside_a_word(tmp_path, scenes):
    tokenizer = Tokenizer.train([*scenes, "hot dog hotdogs doghouse 羽绒服 很大的猫"], size=400)
    tokenizer.dictionary = ("Hot  dog", "很大的猫", "大的", "dog")
    text = "hot dog, 很大的猫 and a hot doghouse"
    spans = find_spans([text], tokenizer, 64, ["entity"])
    assert spans.id.tolist() == [span_id("hot dog"), span_id("很大的猫")]
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.dictionary == ("Hot dog", "很大的猫", "大的", "dog")
    assert torch.equal(find_spans([text], again, 64, ["entity"]).start, spans.start)


@pytest.mark.parametrize(("content", "message"), [(b"\n \n", "no name"), (b"\xff\xfe", "not UTF-8"), (None, "No such")])
def test_a_bad_dictionary_is_told_in_one_line(tmp_path, content, message):
    path = tmp_path / "names.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_dictionary(path)


def test_the_loader_delivers_them(tokenizer):
    corpus, asked = Scenes(count=8, side=32), (Reads(spans=("phrase",)), Needs(spans=("word", "phrase")))
    loader = Loader(corpus, tokenizer, Order(8, 4, 0), DataConfig(workers=0), *asked, 0, 32, 16)
    texts = loader[0].texts
    told = {text_id(text): text for row in range(8) for text in all_texts(corpus.record(row))}
    want = find_spans([told[k] for k in loader[0].text_id.tolist()], tokenizer, 16, ("phrase", "word"))
    for name in ("sequence", "start", "end", "id", "kind"):
        assert torch.equal(getattr(texts.spans, name), getattr(want, name))


def test_no_kinds_give_no_spans_and_unknown_kinds_are_refused(tokenizer):
    assert find_spans(["a cat"], tokenizer, 16, ()) is None
    with pytest.raises(UserError, match="there are word, phrase, entity"):
        check_needs(Scenes(count=2), Needs(spans=("letters",)))
    with pytest.raises(UserError, match="there are word, phrase, entity"):
        check_reads(Scenes(count=2), Reads(spans=("letters",)))
