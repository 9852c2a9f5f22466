"""Words with their places, simplified characters, full-width forms."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuwen.data.chinese import Word, half_width, has_han, segment, simplify
from tuwen.errors import UserError


def words(text, **options):
    return [word.text for word in segment(text, **options)]


def test_chinese_words_with_their_places():
    text = "我来到 北京清华大学。"
    assert segment(text) == [
        Word("我", 0, 1),
        Word("来到", 1, 3),
        Word("北京", 4, 6),
        Word("清华大学", 6, 10),
        Word("。", 10, 11),
    ]


def test_traditional_text_falls_into_the_same_words():
    assert words("紅色沙發上的白貓在圖書館裡") == ["紅色", "沙發", "上", "的", "白貓", "在", "圖書館", "裡"]


def test_places_count_characters_also_beyond_the_basic_plane():
    text = "𠮷野家🍜很好吃，T恤 don't"
    for word in segment(text):
        assert text[word.start : word.end] == word.text
    assert "很" in words(text)[2] or "🍜" in words(text)


def test_latin_words_and_signs():
    assert words("A dog's well-known ball, 3 times!") == ["A", "dog's", "well-known", "ball", ",", "3", "times", "!"]
    assert words("犬") == ["犬"]
    assert words("いぬ、ネコ") == ["い", "ぬ", "、", "ネ", "コ"]


def test_letters_beside_chinese_are_cut_as_elsewhere():
    assert words("café的 well-known 手机14，T恤 don't") == [
        "café",
        "的",
        "well-known",
        "手机",
        "14",
        "，",
        "T恤",
        "don't",
    ]


def test_a_segmenter_of_ones_own():
    assert segment("a bc  de", lambda text: ["a", "b", "c", " ", "de"])[-1] == Word("de", 6, 8)
    with pytest.raises(UserError, match="gave 'x', but the text goes on 'bc'"):
        segment("a bc", lambda text: ["a", "x"])


@given(st.text(st.sampled_from("我来到北京清華大學 \t\n,。a1é🍜𠮷รกあ'-")))
def test_words_cover_all_but_white_space(text):
    covered = [place for word in segment(text) for place in range(word.start, word.end)]
    assert covered == sorted(set(covered))
    assert all(text[place].isspace() for place in set(range(len(text))) - set(covered))


def test_simplify():
    assert simplify("乾隆皇帝吃乾飯，一隻狗") == "乾隆皇帝吃干饭，一只狗"
    assert simplify("already simple") == "already simple"


def test_half_width():
    assert half_width("ＡＢＣ　１２３，（你好）ﬁ㎏。") == "ABC 123,(你好)ﬁ㎏。"


def test_korean_is_no_chinese():
    """Compatibility ideographs start at U+F900, which editors may write as U+8C48: all of hangul lies between."""
    assert words("한국어 문장") == ["한국어", "문장"]
    assert not has_han("한국어 ꀀ \ue000")
    assert has_han("\uf900")
