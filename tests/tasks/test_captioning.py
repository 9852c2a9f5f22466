"""Captioning and translation with systems whose words are known beforehand."""

import pytest
import torch

from tests.tasks.stub import DualStub, Numbers, Pairs, Table, ready
from tuwen.data.corpus import Record
from tuwen.errors import UserError
from tuwen.nn.generation import Generated, Generation
from tuwen.tasks.captioning import evaluate_captioning
from tuwen.tasks.text_metrics import caption_scores, translation_scores
from tuwen.tasks.translation import evaluate_translation, parallel

LANGUAGES = ("en", "zh")
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


class Speaking(Numbers):
    """Says numbers as words of their digits; a text's first number is what it says."""

    def decode(self, ids):
        return [" ".join(WORDS[int(d)] for d in str(int(row[0]))) for row in ids]


class Namer(DualStub):
    """Says the picture's number plus 100 times the language; with a prompt, adds 1000 times the prompt's number."""

    def __init__(self):
        super().__init__(Table(None))
        self.asked = []

    def generate(self, images, prompt, language, how, keys=None):
        rows = len(language)
        said = 100 * language
        if images is not None:
            said = said + images.states["last"][:, 0].long()
        if prompt is not None:
            said = said + 1000 * prompt.ids[:, 0]
        self.asked.append((images is not None, how, keys.tolist()))
        return Generated(said[:, None], torch.ones(rows, 1, dtype=torch.bool), torch.zeros(rows))


def corpus(**options) -> Pairs:
    texts = [
        {"en": ["zero", "nil"], "zh": ["one zero zero", "one"]},
        {"en": ["one"], "zh": ["one zero one"]},
        {"en": ["three", "two"], "zh": ["one zero two"]},
        {"en": ["four"], "zh": []},
    ]
    return Pairs(texts, **options)


def test_captions_are_held_against_all_texts_of_their_picture():
    system = Namer()
    found = evaluate_captioning(ready(system, LANGUAGES, Speaking()), corpus(), batch_size=3)
    english, chinese = found["languages"]["en"], found["languages"]["zh"]
    made = ["zero", "one", "two", "three"]
    references = [["zero", "nil"], ["one"], ["three", "two"], ["four"]]
    for name, score in caption_scores(made, references).items():
        assert english[name] == pytest.approx(score)
    for name, score in caption_scores(made, references[1:] + references[:1]).items():
        assert english["shuffled"][name] == pytest.approx(score)
    assert english["exact"] == 3 / 4
    assert (english["pictures"], chinese["pictures"]) == (4, 3)  # one has no Chinese text
    assert chinese["exact"] == 1
    assert english["samples"][3] == {"made": "three", "reference": "four"}
    assert found["images"] == 4
    assert found["task"] == "captioning"


def test_batches_broken_pictures_and_rows_of_one_picture():
    whole = evaluate_captioning(ready(Namer(), LANGUAGES, Speaking()), corpus())
    for size in (1, 2):
        found = evaluate_captioning(ready(Namer(), LANGUAGES, Speaking()), corpus(), batch_size=size)
        assert found["languages"] == whole["languages"]
    found = evaluate_captioning(ready(Namer(), LANGUAGES, Speaking()), corpus(broken=[1]))
    assert found["broken"] == {"truncated": 1}
    assert found["languages"]["en"]["pictures"] == 3
    same = evaluate_captioning(ready(Namer(), LANGUAGES, Speaking()), corpus(image_ids=[7, 8, 8, 9]))
    assert same["images"] == 3
    assert same["languages"]["en"]["exact"] == 2 / 3  # "one" is a text of row 1, whose picture row 2 shares
    limited = evaluate_captioning(ready(Namer(), LANGUAGES, Speaking()), corpus(), limit=2, languages=["en"])
    assert limited["images"] == 2
    assert list(limited["languages"]) == ["en"]


def test_a_language_without_a_text_does_not_fail_the_others():
    of = Pairs([{"en": ["zero"]}, {"en": ["one"], "zh": ["one"]}])
    measured = evaluate_captioning(ready(Namer(), LANGUAGES, Speaking()), of, limit=1)
    assert (list(measured["languages"]), measured["note"]) == (["en"], "not measured: no text in zh")
    with pytest.raises(UserError, match="no text in 'zh' to measure by"):
        evaluate_captioning(ready(Namer(), LANGUAGES, Speaking()), of, limit=1, languages=["zh"])
    table = (*LANGUAGES, "de")
    of = Pairs([{"en": ["1"], "zh": ["say 1"], "de": ["2", "3"]}])
    translated = evaluate_translation(ready(Namer(), table, Speaking()), of)
    assert set(translated["pairs"]) == {"en-zh", "zh-en"}
    assert translated["note"] == "not measured, no parallel texts: en-de, zh-de, de-en, de-zh"
    with pytest.raises(UserError, match="as many texts in en as in de, so none are translations"):
        evaluate_translation(ready(Namer(), table, Speaking()), of, languages=["en", "de"])


def test_draws_are_keyed_by_the_picture():
    system, how = Namer(), Generation("nucleus", seed=3)
    evaluate_captioning(
        ready(system, LANGUAGES, Speaking()), corpus(image_ids=[31, 32, 33, 34]), languages=["en"], how=how
    )
    assert system.asked == [(True, how, [31, 32, 33, 34])]


def test_a_system_without_a_decoder_is_refused():
    for task in (evaluate_captioning, evaluate_translation):
        with pytest.raises(UserError, match="cannot generate: it has no decoder"):
            task(ready(DualStub(Table(None)), LANGUAGES, Speaking()), corpus())


# ---- translation


def bilingual(**options) -> Pairs:
    texts = [{"en": [f"{k}", f"{k + 5}"], "zh": [f"say {k}", f"say {k + 5}"]} for k in range(3)]
    return Pairs(texts, **options)


def test_every_pair_of_languages_under_every_condition():
    system = Namer()
    found = evaluate_translation(ready(system, LANGUAGES, Speaking()), bilingual(), batch_size=2)
    assert set(found["pairs"]) == {"en-zh", "zh-en"}
    pair = found["pairs"]["en-zh"]
    assert pair["sentences"] == 6
    # source k, target language 1: 1000 k + 100 + picture
    sources, pictures, others = [0, 5, 1, 6, 2, 7], [0, 0, 1, 1, 2, 2], [1, 1, 0, 0, 1, 1]
    want = {
        "with_picture": [1000 * s + 100 + p for s, p in zip(sources, pictures, strict=True)],
        "without_picture": [1000 * s + 100 for s in sources],
        "wrong_picture": [1000 * s + 100 + p for s, p in zip(sources, others, strict=True)],
    }
    for name, numbers in want.items():
        said = [" ".join(WORDS[int(d)] for d in str(n)) for n in numbers]
        references = [f"say {s}" for s in sources]
        assert pair[name] == translation_scores(said, references, "zh")
        assert [sample[name] for sample in pair["samples"]] == said[:5]
    assert [with_picture for with_picture, *_ in system.asked[:3]] == [True, False, True]


def test_sources_are_ambiguous_where_the_corpus_says_so():
    columns = [{"ambiguous": {"en": [f"{k + 20}", f"{k + 30}"]}} for k in range(3)]
    found = evaluate_translation(ready(Namer(), LANGUAGES, Speaking()), bilingual(columns=columns))
    assert [sample["source"] for sample in found["pairs"]["en-zh"]["samples"]] == ["20", "30", "21", "31", "22"]
    assert found["pairs"]["zh-en"]["samples"][0]["source"] == "say 0"


def test_only_texts_of_equal_number_are_translations():
    record = Record("r", {"en": ["a", "b"], "zh": ["甲", " "], "de": ["x"]}, 1, {"ambiguous": {"en": ["c"]}})
    assert list(parallel(record, "en", "zh")) == [("a", "甲")]  # an empty text, and sources of another number
    assert list(parallel(record, "en", "de")) == []
    with pytest.raises(UserError, match="no row has as many texts in zh as in de"):
        evaluate_translation(ready(Namer(), ("zh", "de"), Speaking()), Pairs([{"zh": ["1", "2"], "de": ["3"]}]))


def test_one_language_alone_is_refused():
    with pytest.raises(UserError, match="translation needs two languages"):
        evaluate_translation(ready(Namer(), LANGUAGES, Speaking()), bilingual(), languages=["en"])


def test_broken_pictures_leave_every_condition_alike():
    found = evaluate_translation(ready(Namer(), LANGUAGES, Speaking()), bilingual(broken=[1]), batch_size=1)
    pair = found["pairs"]["en-zh"]
    assert pair["sentences"] == 4
    assert [sample["source"] for sample in pair["samples"]] == ["0", "5", "2", "7"]
    assert found["broken"] == {"truncated": 1}
