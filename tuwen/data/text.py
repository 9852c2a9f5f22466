"""Texts become token ids: normalisation, tokenizers, masking."""

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import decoders, normalizers, processors
from torch import Tensor

from tuwen.data.batch import Spans, Texts
from tuwen.data.corpus import normalise
from tuwen.data.given import json_of, text_of
from tuwen.data.lexicons.files import read_dictionary, save_lexicon, saved_lexicon
from tuwen.data.lexicons.lexicon import Lexicon
from tuwen.data.tokenizer_bounds import MOST_WORDS, refuse_unbounded
from tuwen.data.tokenizer_training import SPECIAL_NAMES, train_unigram, train_wordpiece, without_rare, wordpiece
from tuwen.errors import UserError, quoted, refused
from tuwen.run import TOKENIZER

DICTIONARY = "dictionary.txt"  # beside a tokenizer.json
RULES = "tokenizer_rules.json"  # beside that of published weights, what tokenizer.json does not say


@dataclass(frozen=True)
class Vocabulary:
    """What a system must know of a tokenizer: its size and the ids of its special tokens.

    cls, mask: -1 where a published model's tokenizer has none. lexicon: what entity spans are linked to, by row; None:
    nothing is known of entities.
    """

    size: int
    pad: int
    unknown: int
    cls: int
    sep: int
    mask: int
    lexicon: Lexicon | None = None


class Tokenizer:
    """Texts to ids as `[CLS] text [SEP]`, whatever the file's own post-processor, padding or truncation says.

    Every text is normalised by `tuwen.data.corpus.normalise` (NFKC, white space squeezed) before the file's
    own normaliser, so that training and testing agree. The name of a special token inside a text is plain text.

    vocabulary: size and special ids.
    dictionary: names of entities that spans look for (`tuwen.data.spans`). lexicon: entities that they are linked to.
    rules: of published weights, where they differ: special tokens by role ("pad", "unknown", "cls", "sep", "mask"; None
        for one that is not used); "normalise": false where texts go to the file's own normaliser as they are; "size":
        entries of the word embeddings where there are more than pieces.
    seen, truncated: texts encoded so far by this object, and how many of them were cut to fit.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        source: str = "the tokenizer",
        dictionary: Sequence[str] = (),
        rules=None,
        lexicon: Lexicon | None = None,
    ):
        """inner: is taken over and changed.

        Raises:
            UserError: a special token is missing.
        """
        self._source = source
        self.rules = _checked_rules(rules or {}, source)
        self.vocabulary = replace(_special_ids(inner, source, self.rules), lexicon=lexicon)
        names = {inner.id_to_token(i) for i in self._specials()}
        inner.add_special_tokens(sorted(names))
        cls, sep = self.vocabulary.cls, self.vocabulary.sep
        around = [(inner.id_to_token(i), i) for i in (cls, sep) if i >= 0]
        first = [inner.id_to_token(cls)] if cls >= 0 else []
        inner.post_processor = processors.TemplateProcessing(
            single=[*first, "$A", inner.id_to_token(sep)], special_tokens=around
        )
        inner.no_padding()
        inner.no_truncation()
        inner.encode_special_tokens = True
        self._inner = inner
        self.dictionary = tuple(dictionary)
        self.seen = 0
        self.truncated = 0

    # ---- making and keeping

    @classmethod
    def train(
        cls, texts: Iterable[str], kind: str = "wordpiece", size: int = 8000, lowercase: bool = True
    ) -> "Tokenizer":
        """A tokenizer learned from texts; the same texts in any order give the same file.

        kind: "wordpiece" (Chinese characters one by one, as BERT) or "unigram" (pieces may span Chinese characters).
        size: most entries the vocabulary may have, special tokens included; few texts give fewer.
            The rarest single characters are left out beyond three quarters of it.

        Raises:
            UserError: an unknown kind, a size without room, or no text.
        """
        makers = {"wordpiece": train_wordpiece, "unigram": train_unigram}
        if kind not in makers:
            raise UserError(f"no tokenizer of kind {kind!r}; choose wordpiece or unigram")
        if size < 2 * len(SPECIAL_NAMES):
            raise UserError(f"a vocabulary of {size} has no room for words; give at least {2 * len(SPECIAL_NAMES)}")
        return cls(makers[kind](texts, size, lowercase))

    def without_rare(self, reports: Iterable[Sequence[str]], least: int) -> "Tokenizer":
        """Without the pieces that fewer than `least` of the reports hold, each the texts of a row."""
        return Tokenizer(without_rare(self._inner, reports, least))

    @classmethod
    def load(cls, path: str | Path, lowercase: bool | None = None) -> "Tokenizer":
        """A `tokenizer.json` of any kind, a BERT `vocab.txt`, or a folder that holds one of them.

        A `dictionary.txt` beside it, as `save` writes, gives the dictionary, a `lexicon.tsv` the lexicon.

        lowercase: for a `vocab.txt`, which does not say; None: yes, unless the vocabulary has capitalised words.

        Raises:
            UserError: no such file, not readable, or a special token is missing.
        """
        file = _find_file(Path(path))
        text = text_of(file)
        if file.suffix != ".json":
            tokenizer = cls(_from_pieces(text.split("\n"), lowercase), str(file))
        else:
            rules = file.parent / RULES
            tokenizer = cls._from_json(text, str(file), (), json_of(rules) if rules.is_file() else None)
        beside = file.parent / DICTIONARY
        tokenizer.dictionary = read_dictionary(beside) if beside.is_file() else ()
        tokenizer.lexicon = saved_lexicon(file.parent)
        return tokenizer

    @classmethod
    def _from_json(
        cls, text: str, source: str, dictionary: Sequence[str] = (), rules=None, lexicon: Lexicon | None = None
    ) -> "Tokenizer":
        """Raises:
        UserError: not the library's, or one that makes texts very much longer.
        """
        with refused(f"{source}: not a tokenizer.json of the tokenizers library"):
            refuse_unbounded(json.loads(text), source)
            return cls(tokenizers.Tokenizer.from_str(text), source, dictionary, rules, lexicon)

    def save(self, path: str | Path) -> None:
        """Writes a `tokenizer.json` that gives the same ids in any program that uses `tokenizers`.

        The dictionary, where there is one, goes into `dictionary.txt` beside it, the lexicon into `lexicon.tsv`.
        """
        Path(path).write_text(self.to_json(), encoding="utf-8")
        if self.rules:
            Path(path).with_name(RULES).write_text(json.dumps(self.rules, ensure_ascii=False), encoding="utf-8")
        if self.dictionary:
            Path(path).with_name(DICTIONARY).write_text("\n".join(self.dictionary) + "\n", encoding="utf-8")
        if self.lexicon is not None:
            save_lexicon(self.lexicon, Path(path).parent)

    def to_json(self) -> str:
        return self._inner.to_str(pretty=True)

    @property
    def digest(self) -> str:
        """Equal for tokenizers that read every text alike, its entities included."""
        known = "" if self.lexicon is None else self.lexicon.digest
        return hashlib.blake2b((self.to_json() + known).encode(), digest_size=16).hexdigest()

    def __reduce__(self):
        state = self._inner.to_str(), "the tokenizer", self.dictionary, self.rules, self.lexicon
        return Tokenizer._from_json, state

    @property
    def lexicon(self) -> Lexicon | None:
        return self.vocabulary.lexicon

    @lexicon.setter
    def lexicon(self, lexicon: Lexicon | None) -> None:
        self.vocabulary = replace(self.vocabulary, lexicon=lexicon)

    # ---- using

    def pieces(self, text: str) -> list[str]:
        """The pieces of a text, without special tokens."""
        return [self._inner.id_to_token(i) or "" for i in self.ids([text])[0]]

    def ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Each text's ids, int64, uncut and without special tokens."""
        clean = [normalise(text) for text in texts] if self.rules.get("normalise", True) else list(texts)
        with self._encoding():
            encodings = self._inner.encode_batch_fast(clean, add_special_tokens=False)
        rows = [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
        special = [i for i in self._specials() if i != self.vocabulary.unknown]
        for ids in rows:
            ids[np.isin(ids, special)] = self.vocabulary.unknown  # a Unigram model may spell "<mask>" as one piece
        return rows

    def places(self, texts: Sequence[str]) -> list[np.ndarray]:
        """[n, 2] int64 a text: the characters start..end-1 of `normalise(text)` that each of its `ids` stands for."""
        with self._encoding():
            encodings = self._inner.encode_batch([normalise(text) for text in texts], add_special_tokens=False)
        return [np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) for encoding in encodings]

    def unknown_words(self, text: str) -> list[str]:
        """The parts of a text that the vocabulary does not have, each once, as they come."""
        clean = normalise(text) if self.rules.get("normalise", True) else text
        with self._encoding():
            encoding = self._inner.encode(clean, add_special_tokens=False)
        places = [
            place for place, i in zip(encoding.offsets, encoding.ids, strict=True) if i == self.vocabulary.unknown
        ]
        return list(dict.fromkeys(clean[start:end].strip() for start, end in places))

    @functools.cached_property
    def entries(self) -> frozenset[tuple[int, ...]]:
        """The dictionary's entries of two tokens or more, as ids."""
        return frozenset(tuple(ids.tolist()) for ids in self.ids(self.dictionary) if len(ids) > 1)

    def _encoding(self) -> AbstractContextManager[None]:
        """While texts are encoded: a file's own pattern may fail on one, and panic."""
        return refused(f"{self._source}: the tokenizer fails on a text", "use another tokenizer")

    def encode(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """(ids [S, L] int64, mask [S, L] bool) of `[CLS] text [SEP]`, padded on the right.

        L is the longest text's, rounded up to a multiple of 8, and at most `length` tokens, special ones
        included; a longer text loses its end and keeps its [SEP].
        """
        return self.pad(self.ids(texts), length)

    def pad(self, ids: Sequence[np.ndarray], length: int) -> tuple[Tensor, Tensor]:
        """`encode` of texts whose `ids` are known."""
        if length < 3:
            raise UserError(f"a text length of {length} leaves no room between [CLS] and [SEP]; give at least 3")
        words = self.vocabulary
        begin = 1 if words.cls >= 0 else 0
        around = begin + 1
        counts = np.array([min(len(i) + around, length) for i in ids], dtype=np.int64)
        longest = int(counts.max(initial=around))
        width = min(-(-longest // 8) * 8, length)
        out = np.full((len(ids), width), words.pad, dtype=np.int64)
        for row, (content, count) in enumerate(zip(ids, counts, strict=True)):
            out[row, begin : count - 1] = content[: count - around]
            out[row, count - 1] = words.sep
        if begin:
            out[:, 0] = words.cls
        mask = np.arange(width) < counts[:, None]
        self.seen += len(ids)
        self.truncated += sum(len(i) + around > length for i in ids)
        return torch.from_numpy(out), torch.from_numpy(mask)

    def decode(self, ids: Tensor) -> list[str]:
        """Texts of ids [S, L] as a decoder says them: up to the first [SEP], without special tokens.

        Pieces are joined as the tokenizer's file says, or as its kind of model writes them; no white space stays beside
        Chinese or Japanese characters, nor before a comma or full stop, since tokenizers put it there.
        """
        texts = []
        for row in ids.tolist():
            words = row[: row.index(self.vocabulary.sep)] if self.vocabulary.sep in row else row
            pieces = [self._inner.id_to_token(i) for i in words if i not in self._specials()]
            texts.append(_spaced(self._joined([piece for piece in pieces if piece is not None])))
        return texts

    def _joined(self, pieces: list[str]) -> str:
        if self._inner.decoder is not None:
            return self._inner.decoder.decode(pieces)
        known = {"WordPiece": decoders.WordPiece(cleanup=False), "Unigram": decoders.Metaspace()}
        decoder = known.get(type(self._inner.model).__name__)
        return " ".join(pieces) if decoder is None else decoder.decode(pieces)

    def _specials(self) -> tuple[int, ...]:
        words = self.vocabulary
        return tuple(i for i in (words.pad, words.unknown, words.cls, words.sep, words.mask) if i >= 0)


def mask_words(
    texts: Texts,
    vocabulary: Vocabulary,
    draws: Tensor,
    share: float = 0.15,
    words: Spans | None = None,
    sep: bool = True,
    some: bool = False,
) -> tuple[Texts, Tensor]:
    """BERT's masking: (texts with masked ids, labels [S, L] int64, -100 where nothing is to be told).

    Each real token but [CLS] is chosen with probability `share`; of the chosen 80% become [MASK], 10% an id drawn
    uniformly from the vocabulary, 10% stay (ALBEF, sections 3.2 and A, and its code).

    draws: [S, >= 3 L] float64 in [0, 1); position l uses 3l (whether), 3l + 1 (what) and 3l + 2 (which id), so
        padding to another length changes nothing.
    words: spans that are hidden whole or not at all, by the draw of their first token (whole word masking, Cui et al.,
        arXiv 1906.08101); what takes the place of each token is still drawn by itself. They must not overlap.
    sep: [SEP] too may be hidden, as in ALBEF's code. some: of a text that has a word at least one is chosen, that of
        the least draw, as in the collators of transformers.
    """
    if vocabulary.mask < 0:
        raise UserError("this tokenizer has no mask token, so no words can be masked; use one that has, such as BERT's")
    sequences, length = texts.ids.shape
    draw = draws[:, : 3 * length].reshape(sequences, length, 3)
    whether, what, which = draw.unbind(-1)
    if words is not None:
        whether = whether.gather(1, _first_of_word(words, sequences, length).to(whether.device))
    real = texts.mask & (texts.ids != vocabulary.cls) & (texts.ids != vocabulary.pad)
    real = real if sep else real & (texts.ids != vocabulary.sep)
    chosen = real & (whether < share)
    if some:
        whether = whether.masked_fill(~real, 1.0)
        chosen |= real & (whether == whether.amin(1, keepdim=True))
    labels = texts.ids.masked_fill(~chosen, -100)
    drawn = (which * vocabulary.size).long()
    ids = texts.ids.masked_fill(chosen & (what < 0.8), vocabulary.mask)
    ids = torch.where(chosen & (what >= 0.8) & (what < 0.9), drawn, ids)
    return replace(texts, ids=ids), labels


def _first_of_word(words: Spans, sequences: int, length: int) -> Tensor:
    """[S, L] int64: for each position the first position of the span it lies in, or its own."""
    first = torch.arange(length, device=words.start.device).repeat(sequences, 1)
    counts = (words.end.clamp(max=length) - words.start).clamp(min=0)
    start = words.start.repeat_interleave(counts)
    within = torch.arange(len(start), device=start.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    first[words.sequence.repeat_interleave(counts), start + within] = start
    return first


_HAN = "\u3000-\u303f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef"
_BESIDE_HAN = re.compile(rf"(?<=[{_HAN}])\s+|\s+(?=[{_HAN}])")
_BEFORE_STOP = re.compile(r"\s+(?=[,.!?;:%)\]}])|(?<=[(\[{])\s+")
_WITHIN_WORD = re.compile(r"(?<=\w)\s+(['’-])\s+(?=\w)")


def _spaced(text: str) -> str:
    """The text with white space where a writer would put it; half the punctuation of Chinese is written in ASCII."""
    text = _BEFORE_STOP.sub("", _BESIDE_HAN.sub("", text))
    return normalise(_WITHIN_WORD.sub(r"\1", text))


# ---- loading


def _find_file(path: Path) -> Path:
    if path.is_dir():
        files = [path / name for name in (TOKENIZER, "vocab.txt") if (path / name).is_file()]
        if not files:
            raise UserError(f"{path}: holds neither tokenizer.json nor vocab.txt")
        return files[0]
    if not path.is_file():
        raise UserError(f"{path}: no such tokenizer file; give a tokenizer.json or a BERT vocab.txt")
    return path


def _checked_rules(rules: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The rules, if each is of its kind.

    Raises:
        UserError: one that is not.
    """
    for name, value in rules.items():
        role = name in SPECIAL_NAMES and (value is None or isinstance(value, str))
        flag = name == "normalise" and isinstance(value, bool)
        size = name == "size" and isinstance(value, int) and 0 <= value <= MOST_WORDS
        if not (role or flag or size):
            raise UserError(f"{source}: the rule {quoted(name, 40)}: {quoted(value, 80)} is none of a tokenizer")
    return dict(rules)


def _special_ids(inner: tokenizers.Tokenizer, source: str, rules: Mapping[str, Any]) -> Vocabulary:
    names_of = {role: (rules[role],) if rules.get(role) else names for role, names in SPECIAL_NAMES.items()}
    ids = {role: [inner.token_to_id(name) for name in names] for role, names in names_of.items()}
    ids |= {role: [-1] for role in ("cls", "mask") if rules.get(role, "") is None}
    roles = {role: next((i for i in known if i is not None), None) for role, known in ids.items()}
    missing = [" or ".join(names_of[role]) for role, i in roles.items() if i is None]
    if missing:
        raise UserError(f"{source}: has no special token {', no '.join(missing)}; add it or use another tokenizer")
    size = max(max(inner.get_vocab(with_added_tokens=True).values()) + 1, int(rules.get("size", 0)))
    pad, unknown, cls, sep, mask = (roles[role] or 0 for role in ("pad", "unknown", "cls", "sep", "mask"))
    return Vocabulary(size, pad, unknown, cls, sep, mask)


def _from_pieces(lines: list[str], lowercase: bool | None) -> tokenizers.Tokenizer:
    """BERT's tokenizer from the lines of its `vocab.txt`; a line's number is its id."""
    pieces = [line.removesuffix("\r") for line in lines]
    while pieces and not pieces[-1]:
        pieces.pop()
    if lowercase is None:
        lowercase = not any(re.fullmatch("[A-Z][a-z]+", piece) for piece in pieces)
    normaliser = normalizers.BertNormalizer(lowercase=lowercase)  # strips accents when it lower-cases, as BERT does
    return wordpiece(pieces, normaliser, longest_word=100)
