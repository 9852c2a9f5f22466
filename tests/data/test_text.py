"""Tokenizers and word masking: hand-made vocabularies, hostile files, an independent slow masking."""

import json
import os
import pickle
import random
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from tuwen.data import draws
from tuwen.data.batch import Texts
from tuwen.data.text import Tokenizer, Vocabulary, mask_words
from tuwen.data.tokenizer_training import train_unigram, train_wordpiece
from tuwen.errors import UserError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCAB = [*SPECIAL, "红", "色", "的", "a", "dog", "##s", "run", "##ning", ".", "é", "e", "[", "]", "mask", "。"]

_THINGS = ["dog", "cat", "horse", "bird", "apple", "running", "jumping", "umbrella", "tree", "house", "river"]
CORPUS = [f"A {a} is beside the {b}." for a in _THINGS for b in _THINGS]
CORPUS += [f"{n}只{colour}的{what}在左边。" for n in "一两三" for colour in "红绿蓝" for what in "猫狗鸟马树"]


SMALL = Tokenizer.train(CORPUS, size=120)


@pytest.fixture
def bert(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(VOCAB) + "\n", encoding="utf-8")
    return Tokenizer.load(path)


@pytest.fixture(scope="module", params=["wordpiece", "unigram"])
def trained(request):
    return Tokenizer.train(CORPUS, kind=request.param, size=120)


def unpadded(tokenizer, text, length=64):
    ids, mask = tokenizer.encode([text], length)
    return ids[mask].tolist()


# ---- encoding


def test_encoding_by_hand(bert):
    ids, mask = bert.encode(["红色的 dogs.", "A running", ""], 32)
    assert ids.tolist() == [
        [2, 5, 6, 7, 9, 10, 13, 3],
        [2, 8, 11, 12, 3, 0, 0, 0],
        [2, 3, 0, 0, 0, 0, 0, 0],
    ]
    assert mask.tolist() == (ids != 0).tolist()
    assert ids.dtype == torch.int64
    assert mask.dtype == torch.bool
    assert bert.vocabulary == Vocabulary(size=20, pad=0, unknown=1, cls=2, sep=3, mask=4)
    assert bert.pieces("dogs 红x") == ["dog", "##s", "红", "[UNK]"]


def test_words_that_the_vocabulary_lacks(bert, trained):
    assert bert.unknown_words("红色的 dog 貓 яблоко, 貓 RUNNING") == ["貓", "яблоко", ","]
    assert bert.unknown_words("红") == bert.unknown_words("") == []
    assert trained.unknown_words("a яблоко") == ["яблоко"]
    assert trained.unknown_words("a dog is beside the cat") == []


def test_cutting_keeps_the_separator_and_is_counted(bert):
    ids, mask = bert.encode(["a a a a a a a a a a", "a a a", "a"], 5)
    assert ids.tolist() == [[2, 8, 8, 8, 3], [2, 8, 8, 8, 3], [2, 8, 3, 0, 0]]
    assert mask.sum(1).tolist() == [5, 5, 3]
    assert (bert.seen, bert.truncated) == (3, 1)
    bert.encode(["a a a a"], 5)
    assert (bert.seen, bert.truncated) == (4, 2)
    with pytest.raises(UserError, match="give at least 3"):
        bert.encode(["a"], 2)


@pytest.mark.parametrize(("words", "length", "width"), [(1, 32, 8), (6, 32, 8), (7, 32, 16), (40, 32, 32), (7, 12, 12)])
def test_padding_is_to_a_multiple_of_eight_within_the_length(bert, words, length, width):
    assert bert.encode(["a " * words], length)[0].shape == (1, width)


@settings(deadline=None, max_examples=50)
@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=6))
def test_a_text_is_encoded_alone_whatever_stands_beside_it(texts):
    tokenizer = SMALL
    ids, mask = tokenizer.encode(texts, 16)
    words = tokenizer.vocabulary
    assert (ids[~mask] == words.pad).all()
    assert int(ids.max()) < words.size
    for k, text in enumerate(texts):
        own = ids[k][mask[k]].tolist()
        assert own == unpadded(tokenizer, text, 16)
        assert own[0] == words.cls
        assert own[-1] == words.sep
        assert not {words.pad, words.cls, words.sep, words.mask} & set(own[1:-1])


SPOKEN = [
    "a dog is beside the cat.",
    "三只绿色的猫在左边。",
    "a dog, a cat (running), and a tree-house!",
    "红色的马、两只鸟和dog在左边。",
]


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
@pytest.mark.parametrize("text", SPOKEN)
def test_decoding_gives_back_what_was_encoded(kind, text):
    tokenizer = Tokenizer.train([*CORPUS, *SPOKEN], kind=kind, size=200)
    ids, _ = tokenizer.encode([text, "a"], 64)
    assert tokenizer.decode(ids) == [text, "a"]


def test_decoding_ends_at_the_first_separator_and_passes_over_special_tokens(bert):
    (dog, s), sep = bert.ids(["dogs"])[0].tolist(), bert.vocabulary.sep
    words = bert.vocabulary
    rows = [[words.cls, dog, s, sep, dog, dog], [words.cls, dog, words.mask, words.pad, s, sep], [sep, dog, s, s, s, s]]
    assert bert.decode(torch.tensor(rows)) == ["dogs", "dogs", ""]


@pytest.mark.parametrize(
    ("pieces", "text"),
    [("红 色 的 dog", "红色的dog"), ("dog . run 。", "dog. run。"), ("[ dog ]", "[dog]"), ("dog run", "dog run")],
)
def test_decoding_puts_spaces_where_a_writer_would(bert, pieces, text):
    ids = torch.tensor([[VOCAB.index(piece) for piece in pieces.split()]])
    assert bert.decode(ids) == [text]


def test_names_of_special_tokens_in_a_text_are_plain_text(bert, trained):
    assert bert.pieces("[MASK] a") == ["[", "mask", "]", "a"]
    for text in ("[MASK]", "<mask>", "[SEP] [PAD]", "[CLS]"):
        content = set(unpadded(trained, text)[1:-1])
        words = trained.vocabulary
        assert not content & {words.mask, words.sep, words.pad, words.cls}
    pieces = [(name, 0.0) for name in ("<pad>", "<unk>", "<s>", "</s>", "<mask>")] + [("▁", -2.0), ("a", -3.0)]
    unigram = Tokenizer(tokenizers.Tokenizer(models.Unigram(pieces, unk_id=1)))
    assert unigram.ids(["a<mask>a"])[0].tolist() == [6, 1, 6]


def test_one_form_of_a_text(trained, bert):
    for tokenizer in (trained, bert):
        plain = unpadded(tokenizer, "A dog 红色的。")
        for other in ("Ａ　ｄｏｇ 红色的。", "  A\tdog\n红色的。 ", "A dog 红色的。"):
            assert unpadded(tokenizer, other) == plain
    composed, apart = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")
    assert unpadded(trained, composed) == unpadded(trained, apart)


def test_the_saved_file_alone_gives_the_same_ids(trained, tmp_path):
    """Without this package's normalisation and assembly."""
    trained.save(tmp_path / "tokenizer.json")
    alone = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("Ａ　ｄｏｇ is  running.", "三只红的猫在左边。", "ﬁne ①", "", "龘 apple"):
        assert alone.encode(text).ids == unpadded(trained, text)


def test_saved_loaded_and_pickled_are_the_same(trained, bert, tmp_path):
    for tokenizer in (trained, bert):
        tokenizer.save(tmp_path / "tokenizer.json")
        again = Tokenizer.load(tmp_path)
        copied = pickle.loads(pickle.dumps(tokenizer))
        for other in (again, copied):
            assert other.vocabulary == tokenizer.vocabulary
            assert other.to_json() == tokenizer.to_json()
            for text in [*CORPUS[::20], "[MASK] dog", "龘"]:
                assert unpadded(other, text) == unpadded(tokenizer, text)


# ---- training


def test_the_order_of_texts_and_the_process_change_nothing():
    shuffled = list(CORPUS)
    random.Random(3).shuffle(shuffled)
    here = [train(shuffled, 120, True).to_str() for train in (train_wordpiece, train_unigram)]
    program = (
        "import json, sys; from tuwen.data.tokenizer_training import train_unigram, train_wordpiece;"
        "texts = json.load(sys.stdin);"
        "print(json.dumps([train(texts, 120, True).to_str() for train in (train_wordpiece, train_unigram)]))"
    )
    for seed in ("5", "6"):
        environment = dict(os.environ, RAYON_NUM_THREADS="1", PYTHONHASHSEED=seed)
        command = [sys.executable, "-c", program]
        made = subprocess.run(
            command, input=json.dumps(CORPUS), capture_output=True, text=True, env=environment, check=True
        )
        assert json.loads(made.stdout) == here


def test_a_trained_vocabulary_covers_its_texts(trained):
    words = trained.vocabulary
    assert words.size <= 120
    assert (words.pad, words.unknown, words.cls, words.sep, words.mask) == (0, 1, 2, 3, 4)
    every = np.concatenate(trained.ids(CORPUS))
    assert words.unknown not in every
    assert len(np.unique(every)) > 30
    assert trained.pieces("A dog is") in (["a", "dog", "is"], ["▁a", "▁dog", "▁is"])


def test_wordpiece_takes_chinese_character_by_character():
    tokenizer = Tokenizer.train(["红色的猫", "红色的狗"] * 50, size=60)
    assert tokenizer.pieces("红色的猫狗") == list("红色的猫狗")
    assert Tokenizer.train(["红色的猫", "红色的狗"] * 50, kind="unigram", size=60).pieces("红色的猫") != list(
        "红色的猫"
    )


def test_wordpiece_merges_the_commonest_pair_first():
    """By hand: l ##o and ##o ##w come 9 times each, n ##e and ##e ##w 5 times, ##w ##e and ##e ##r twice."""
    texts = ["low"] * 7 + ["lower"] * 2 + ["new"] * 5
    two = Tokenizer.train(texts, size=5 + 6 + 2)  # two merges make "low"
    assert two.pieces("low lower new") == ["low", "low", "##e", "##r", "n", "##e", "##w"]
    four = Tokenizer.train(texts, size=5 + 6 + 4)
    assert four.pieces("low lower new") == ["low", "low", "##e", "##r", "new"]


def test_unigram_knows_whole_words():
    texts = ["pink dress", "blue dress", "pink hat", "red hat"] * 20
    tokenizer = Tokenizer.train(texts, kind="unigram", size=60)
    assert tokenizer.pieces("pink hat blue dress") == ["▁pink", "▁hat", "▁blue", "▁dress"]
    assert not any(chr(0x10FFFC) in (tokenizer._inner.id_to_token(k) or "") for k in range(tokenizer.vocabulary.size))


def test_rare_characters_make_room():
    texts = ["common words come often"] * 20 + [chr(0x4E00 + k) for k in range(500)]
    for kind in ("wordpiece", "unigram"):
        tokenizer = Tokenizer.train(texts, kind=kind, size=60)
        assert tokenizer.vocabulary.size <= 60
        assert tokenizer.vocabulary.unknown not in tokenizer.ids(["common words"])[0]
        assert tokenizer.vocabulary.unknown in tokenizer.ids([chr(0x4E00 + 499)])[0]


def test_case():
    assert Tokenizer.train(["Dog dog"] * 9, size=30).pieces("DOG") == ["dog"]
    kept = Tokenizer.train(["Dog dog"] * 9, size=30, lowercase=False)
    assert kept.pieces("Dog dog") == ["Dog", "dog"]


def test_accents_are_kept():
    tokenizer = Tokenizer.train(["über uber"] * 9, size=40)
    assert tokenizer.pieces("über uber") == ["über", "uber"]


def test_training_refuses_what_cannot_be():
    with pytest.raises(UserError, match="no tokenizer of kind 'bpe'"):
        Tokenizer.train(["a"], kind="bpe")
    with pytest.raises(UserError, match="no room for words"):
        Tokenizer.train(["a"], size=6)
    for kind in ("wordpiece", "unigram"):
        with pytest.raises(UserError, match="every text is empty"):
            Tokenizer.train(["", "  "], kind=kind)


# ---- loading


def write_json(path, change=None, names=SPECIAL):
    inner = tokenizers.Tokenizer(models.WordPiece({w: k for k, w in enumerate([*names, "a", "b"])}, unk_token=names[1]))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if change:
        change(inner)
    inner.save(str(path))
    return path


def test_padding_truncation_and_post_processor_of_a_file_do_not_interfere(tmp_path):
    def change(inner):
        inner.enable_padding(length=50, pad_id=3, pad_token="[SEP]")
        inner.enable_truncation(4)
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single="$A [MASK] [MASK]", special_tokens=[("[MASK]", 4)]
        )

    tokenizer = Tokenizer.load(write_json(tmp_path / "tokenizer.json", change))
    ids, _ = tokenizer.encode(["a b a b a b", "b"], 32)
    assert ids.tolist() == [[2, 5, 6, 5, 6, 5, 6, 3], [2, 6, 3, 0, 0, 0, 0, 0]]


def test_other_names_of_special_tokens(tmp_path):
    names = ["<s>", "<unk>", "</s>", "<mask>", "<pad>"]
    tokenizer = Tokenizer.load(write_json(tmp_path / "any-name.json", names=names))
    assert tokenizer.vocabulary == Vocabulary(size=7, pad=4, unknown=1, cls=0, sep=2, mask=3)
    assert tokenizer.encode(["a"], 8)[0].tolist() == [[0, 5, 2, 4, 4, 4, 4, 4]]


def test_missing_special_tokens_are_named(tmp_path):
    path = write_json(tmp_path / "tokenizer.json", names=["[X]", "[UNK]", "[CLS]", "[SEP]", "[Y]"])
    with pytest.raises(UserError, match=r"no special token \[PAD\] or <pad>, no \[MASK\] or <mask>"):
        Tokenizer.load(path)
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"vocab.txt: has no special token \[PAD\]"):
        Tokenizer.load(tmp_path / "vocab.txt")


def test_a_vocab_keeps_line_numbers_as_ids(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("\r\n".join([*SPECIAL, "a", "\u2028", "", "b"]).encode())  # an odd line end inside a line, a gap
    tokenizer = Tokenizer.load(path)
    assert tokenizer.vocabulary.size == 9
    assert tokenizer.ids(["a b"])[0].tolist() == [5, 8]


def test_case_of_a_vocab(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*SPECIAL, "Dog", "dog", "cafe", "café"]), encoding="utf-8")
    assert Tokenizer.load(path).pieces("Dog café") == ["Dog", "café"]
    assert Tokenizer.load(path, lowercase=True).pieces("Dog café") == ["dog", "cafe"]
    path.write_text("\n".join([*SPECIAL, "dog", "cafe"]), encoding="utf-8")
    assert Tokenizer.load(path).pieces("Dog café") == ["dog", "cafe"]


def test_a_vocab_agrees_with_transformers(tmp_path):
    """The whole of BERT's own tokenization on texts that are normalised already."""
    transformers = pytest.importorskip("transformers")
    trained = Tokenizer.train(CORPUS, size=120)
    pieces = [trained._inner.id_to_token(k) for k in range(trained.vocabulary.size)]
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    theirs = transformers.BertTokenizer(str(path))
    ours = Tokenizer.load(path)
    for text in [*CORPUS[::13], "Dogs, RUNNING café!", "红色的umbrella。", "it's 3.5"]:
        assert unpadded(ours, text) == theirs(text)["input_ids"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not a tokenizer.json"),
        (b"[]", "not a tokenizer.json"),
        (b"", "not a tokenizer.json"),
        (b"\xff\xfe{", "not UTF-8 text at byte 0"),
    ],
)
def test_odd_files_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        Tokenizer.load(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="no such tokenizer file"):
        Tokenizer.load(tmp_path / "none.json")
    with pytest.raises(UserError, match=r"holds neither tokenizer.json nor vocab.txt"):
        Tokenizer.load(tmp_path)


# ---- masking

WORDS = Vocabulary(size=50, pad=0, unknown=1, cls=2, sep=3, mask=4)


def some_texts(count=6, length=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 50, (count, length), generator=generator)
    lengths = torch.randint(3, length + 1, (count,), generator=generator)
    mask = torch.arange(length) < lengths[:, None]
    ids[:, 0] = WORDS.cls
    ids[torch.arange(count), lengths - 1] = WORDS.sep
    return Texts(ids.masked_fill(~mask, WORDS.pad), mask, torch.zeros(count, dtype=torch.int64))


def slow_masking(texts, words, drawn, share):
    ids, labels = texts.ids.tolist(), [[-100] * texts.ids.shape[1] for _ in texts.ids]
    for s, row in enumerate(texts.ids.tolist()):
        for position, token in enumerate(row):
            whether, what, which = drawn[s][3 * position : 3 * position + 3].tolist()
            if not texts.mask[s][position] or token in (words.pad, words.cls) or whether >= share:
                continue
            labels[s][position] = token
            if what < 0.8:
                ids[s][position] = words.mask
            elif what < 0.9:
                ids[s][position] = int(which * words.size)
    return ids, labels


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.0, 0.15, 0.5, 1.0]))
def test_masking_against_the_slow_version(seed, share):
    texts = some_texts(seed=seed)
    drawn = draws.uniform(torch.arange(6) + seed, 48, "mask")
    masked, labels = mask_words(texts, WORDS, drawn, share)
    assert (masked.ids.tolist(), labels.tolist()) == slow_masking(texts, WORDS, drawn, share)
    assert torch.equal(masked.mask, texts.mask)


def test_masking_by_hand():
    texts = Texts(
        torch.tensor([[2, 7, 8, 9, 3, 0]]), torch.tensor([[True] * 5 + [False]]), torch.zeros(1, dtype=torch.int64)
    )
    drawn = torch.tensor([[0, 0, 0, 0.1, 0.79, 0.9, 0.14, 0.85, 0.5, 0.1, 0.95, 0.9, 0.0, 0.0, 0.9, 0, 0, 0]]).double()
    masked, labels = mask_words(texts, WORDS, drawn)
    assert masked.ids.tolist() == [[2, 4, 25, 9, 4, 0]]  # [CLS] and padding never; [MASK]; id 0.5 x 50; kept; [SEP] too
    assert labels.tolist() == [[-100, 7, 8, 9, 3, -100]]


def test_the_end_may_be_spared_and_a_word_always_taken():
    """Rows: whose word of least draw is 8; of [CLS] and [SEP] alone; whose draws take 7 anyway."""
    ids = torch.tensor([[2, 7, 8, 3], [2, 3, 0, 0], [2, 7, 8, 3]])
    texts = Texts(ids, ids != 0, torch.zeros(3, dtype=torch.int64))
    drawn = torch.zeros(3, 4, 3, dtype=torch.float64)
    drawn[..., 0] = torch.tensor([[0, 0.9, 0.5, 0.0], [0, 0.0, 0, 0], [0, 0.1, 0.5, 0.0]])
    drawn = drawn.flatten(1)
    assert mask_words(texts, WORDS, drawn)[1].tolist() == [[-100] * 3 + [3], [-100, 3, -100, -100], [-100, 7, -100, 3]]
    assert (mask_words(texts, WORDS, drawn, sep=False)[1][:2] == -100).all()
    masked, labels = mask_words(texts, WORDS, drawn, sep=False, some=True)
    assert labels.tolist() == [[-100, -100, 8, -100], [-100] * 4, [-100, 7, -100, -100]]
    assert masked.ids[0].tolist() == [2, 7, 4, 3]


def test_padding_to_another_length_masks_the_same():
    short = some_texts(length=12)
    longer = Texts(
        torch.nn.functional.pad(short.ids, (0, 9)), torch.nn.functional.pad(short.mask, (0, 9)), short.language
    )
    drawn = [draws.uniform(torch.arange(6), 3 * length, "mask") for length in (12, 21)]
    a, b = (mask_words(texts, WORDS, d, 0.5) for texts, d in zip((short, longer), drawn, strict=True))
    assert torch.equal(a[0].ids, b[0].ids[:, :12])
    assert torch.equal(a[1], b[1][:, :12])
    assert (b[1][:, 12:] == -100).all()


def test_shares_are_fifteen_and_eighty_ten_ten():
    texts = Texts(torch.full((400, 100), 7), torch.ones(400, 100, dtype=torch.bool), torch.zeros(400))
    words = Vocabulary(size=10**6, pad=0, unknown=1, cls=2, sep=3, mask=4)
    masked, labels = mask_words(texts, words, draws.uniform(torch.arange(400), 300, "m"))
    chosen = labels != -100
    count = int(chosen.sum())
    assert abs(count / 40000 - 0.15) < 0.01
    ids = masked.ids[chosen]
    assert abs(float((ids == 4).sum()) / count - 0.8) < 0.02
    assert abs(float((ids == 7).sum()) / count - 0.1) < 0.02
    assert (masked.ids[~chosen] == 7).all()
    random_ids = ids[(ids != 4) & (ids != 7)].double()
    assert abs(float(random_ids.mean()) / 1e6 - 0.5) < 0.05
    assert random_ids.max() < 10**6


@pytest.mark.parametrize("size", [5, 8000, 2**15, 2**20, 250002])
def test_the_greatest_draw_stays_in_the_vocabulary(size):
    texts = Texts(torch.tensor([[7]]), torch.ones(1, 1, dtype=torch.bool), torch.zeros(1))
    drawn = torch.tensor([[0.0, 0.85, 1 - 2.0**-53]], dtype=torch.float64)
    assert int(mask_words(texts, Vocabulary(size, 0, 1, 2, 3, 4), drawn)[0].ids) == size - 1
