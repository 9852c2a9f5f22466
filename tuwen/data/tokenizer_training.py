"""Vocabularies learned from texts: the same texts give the same vocabulary at every run.

The training is that of the `tokenizers` library, whose own trainers let hash tables and threads decide ties.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, repeat
from typing import Any

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

from tuwen.errors import UserError

SPECIAL_NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "unknown": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
_SPECIALS = [names[0] for names in SPECIAL_NAMES.values()]
_LONGEST_WORD = 200  # characters; a longer run without spaces becomes unknown
_SINGLES = 0.75  # at most this share of a trained vocabulary is single characters
_LONGEST_PIECE = 16  # characters
_ENDS = (chr(0x10FFFC) * _LONGEST_PIECE, chr(0x10FFFD) * _LONGEST_PIECE)  # private characters no text uses


def wordpiece(pieces: Sequence[str], normaliser, longest_word: int = _LONGEST_WORD) -> tokenizers.Tokenizer:
    """BERT's tokenizer with the given pieces; their places are their ids."""
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    unknown = next((name for name in SPECIAL_NAMES["unknown"] if name in vocabulary), "[UNK]")
    model = models.WordPiece(vocabulary, unk_token=unknown, max_input_chars_per_word=longest_word)
    inner = tokenizers.Tokenizer(model)
    inner.normalizer = normaliser
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return inner


def train_wordpiece(texts: Iterable[str], size: int, lowercase: bool) -> tokenizers.Tokenizer:
    """Pairs merged by count, as the library's WordPieceTrainer does, but the same at every run.

    The library numbers the pieces inside words in the order of a hash table, which breaks ties by chance. Here each
    character is replaced by one of two private ones, for the start and the inside of a word, and the library's
    BpeTrainer, whose ties are broken by character, does the merging.
    """
    normaliser, splitter = _normaliser(lowercase, split_chinese=True), pre_tokenizers.BertPreTokenizer()
    words = _words(chain.from_iterable(normaliser.normalize_str(text).split() for text in texts), splitter)
    common = _commonest(_weighed((piece, count) for word, count in words.items() for piece in _singles(word)), size)
    starts = {piece: chr(0xF0000 + i) for i, piece in enumerate(sorted(p for p in common if len(p) == 1))}
    insides = {piece: chr(0x100000 + i) for i, piece in enumerate(sorted(p for p in common if len(p) > 1))}
    code = starts | insides
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(_SPECIALS), min_frequency=2, initial_alphabet=list(code.values()), show_progress=False
    )
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    coded = (("".join(code[p] for p in _singles(w)), n) for w, n in words.items() if common.issuperset(_singles(w)))
    repeated = chain.from_iterable(repeat(word, count) for word, count in coded if len(word) > 1)
    inner.train_from_iterator(_lines(repeated), trainer)
    plain = {private: piece for piece, private in code.items()}
    learned = sorted(inner.get_vocab().items(), key=lambda item: item[1])
    pieces = [plain[token[0]] + "".join(plain[c][2:] for c in token[1:]) for token, _ in learned]
    return wordpiece([*_SPECIALS, *pieces], normaliser)


def train_unigram(texts: Iterable[str], size: int, lowercase: bool) -> tokenizers.Tokenizer:
    """The library's Unigram (Kudo, arXiv 1804.10959) with whole words among its candidates.

    The library takes as candidates the strings that are followed by different characters. It looks at words alone,
    so a word that is never the start of a longer one is no candidate. Here every word is followed by one of two runs
    of a private character, too long to be part of a piece, which are taken out afterwards.
    """
    normaliser = _normaliser(lowercase, split_chinese=False)
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split(Regex(r"▁?\p{P}"), "isolated")]
    )
    words = _words((normaliser.normalize_str(text) for text in texts), splitter)
    common = _commonest(_weighed((character, count) for word, count in words.items() for character in word), size)
    lost = {ord(character): " " for word in words for character in word if character not in common}
    trainer = trainers.UnigramTrainer(
        vocab_size=size + 2 * _LONGEST_PIECE,
        special_tokens=["[UNK]"],
        unk_token="[UNK]",
        max_piece_length=_LONGEST_PIECE,
        show_progress=False,
    )
    learner = tokenizers.Tokenizer(models.Unigram())
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    runs = ((run, count) for word, count in sorted(words.items()) for run in word.translate(lost).split())
    ended = chain.from_iterable((repeat(r + _ENDS[0], n - n // 2), repeat(r + _ENDS[1], n // 2)) for r, n in runs)
    learner.train_from_iterator(_lines(chain.from_iterable(ended)), trainer)
    vocabulary = json.loads(learner.to_str())["model"]["vocab"]
    pieces = _settled(vocabulary, size - len(_SPECIALS))
    specials = [(name, 0.0) for name in _SPECIALS]
    inner = tokenizers.Tokenizer(models.Unigram([*specials, *pieces], unk_id=_SPECIALS.index("[UNK]")))
    inner.normalizer = normaliser
    inner.pre_tokenizer = splitter
    return inner


def _settled(vocabulary: list[tuple[str, float]], room: int) -> list[tuple[str, float]]:
    """The `room` best pieces with log-probabilities that sum to one, by falling score, ties by piece.

    Scores are rounded, because threads add them up in any order. Every single character stays; those that the library
    adds at the end, so that none is unknown, get the lowest score plus 0.0001, 0.0002, ... in the order of a hash
    table, and here the lowest score.
    """
    scores = {p: score for p, score in vocabulary if p != "[UNK]" and _ENDS[0][0] not in p and _ENDS[1][0] not in p}
    lowest = min(scores.values())
    added = lowest + 0.0001 * sum(len(piece) == 1 for piece in scores)
    scores = {p: lowest if len(p) == 1 and score <= added else score for p, score in scores.items()}
    total = math.log(math.fsum(math.exp(score) for score in scores.values()))
    rounded = [(piece, round(score - total, 3)) for piece, score in scores.items()]
    singles = [item for item in rounded if len(item[0]) == 1]
    longer = sorted((item for item in rounded if len(item[0]) > 1), key=_falling)
    return sorted([*singles, *longer[: max(0, room - len(singles))]], key=_falling)


def without_rare(inner: tokenizers.Tokenizer, reports: Iterable[Sequence[str]], least: int) -> tokenizers.Tokenizer:
    """The tokenizer without the pieces that fewer than `least` of the reports hold in one of their words.

    reports: the texts of each; the same texts once more are the same report. Special tokens stay.
    """
    model = json.loads(inner.to_str())
    vocabulary = model["model"]["vocab"]
    specials = {token["content"] for token in model["added_tokens"]} | set(_SPECIALS)
    bare = {piece: piece.removeprefix("##").strip("▁") for piece in map(_piece_of, vocabulary)}
    lacking = dict.fromkeys((words for piece, words in bare.items() if piece not in specials and words), 0)
    longest = max(map(len, lacking), default=0)
    seen: set[tuple[str, ...]] = set()
    known: dict[str, set[str]] = {}  # by word, the pieces in it that are still lacking
    for report in reports:
        texts = tuple(sorted(inner.normalizer.normalize_str(text) for text in report))
        if texts in seen:
            continue
        seen.add(texts)
        held: set[str] = set()
        for word in {word for text in texts for word in text.split()}:
            known[word] = (known[word] if word in known else _parts_of(word, longest)) & lacking.keys()
            held |= known[word]
        for piece in held:
            lacking[piece] += 1
            if lacking[piece] >= least:
                del lacking[piece]
    kept: Any = [entry for entry in vocabulary if _piece_of(entry) in specials or bare[_piece_of(entry)] not in lacking]
    if isinstance(vocabulary, dict):
        kept = {piece: i for i, piece in enumerate(sorted(kept, key=vocabulary.__getitem__))}
    model["model"]["vocab"] = kept
    return tokenizers.Tokenizer.from_str(json.dumps(model, ensure_ascii=False))


def _parts_of(word: str, longest: int) -> set[str]:
    ends = range(1, len(word) + 1)
    return {word[max(0, end - size) : end] for end in ends for size in range(1, min(end, longest) + 1)}


def _piece_of(entry: str | list) -> str:
    """The piece of an entry of a vocabulary: WordPiece's are pieces, Unigram's pieces with their scores."""
    return entry if isinstance(entry, str) else entry[0]


def _falling(item: tuple[str, float]) -> tuple[float, str]:
    return -item[1], item[0]


def _normaliser(lowercase: bool, split_chinese: bool):
    """NFKC first, so that the file alone gives the same ids; accents are kept, since most languages need them."""
    bert = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=False, handle_chinese_chars=split_chinese)
    squeeze = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    return normalizers.Sequence([normalizers.NFKC(), bert, *squeeze])


def _words(runs: Iterable[str], splitter) -> Counter[str]:
    """How often each word comes in the runs."""
    counted = Counter(runs)
    return _weighed((word, count) for run, count in counted.items() for word, _ in splitter.pre_tokenize_str(run))


def _weighed(items: Iterable[tuple[str, int]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for item, count in items:
        counts[item] += count
    return counts


def _singles(word: str) -> list[str]:
    """A word character by character, as WordPiece writes them: "cat" is c, ##a, ##t."""
    return [word[0], *("##" + character for character in word[1:])]


def _commonest(singles: Counter[str], size: int) -> set[str]:
    """The single characters a vocabulary of `size` keeps, ties broken by character."""
    if not singles:
        raise UserError("no text to learn a tokenizer from; every text is empty")
    room = int((size - len(_SPECIALS)) * _SINGLES)
    return set(sorted(singles, key=lambda piece: (-singles[piece], piece))[:room])


def _lines(words: Iterator[str], count: int = 1000) -> Iterator[str]:
    """The words, many in a line: one call of the library each."""
    while chunk := list(islice(words, count)):
        yield " ".join(chunk)
