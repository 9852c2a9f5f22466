"""The tokenizer of published weights, as `tuwen.data.text.Tokenizer`; cut down to a corpus where asked."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers
from torch import Tensor

from tuwen.data.given import text_of
from tuwen.data.text import Tokenizer
from tuwen.data.tokenizer_bounds import refuse_unbounded
from tuwen.errors import UserError, quoted, refused
from tuwen.nn.backbones import transformers_package
from tuwen.nn.published.files import json_if_there

ROLES = {
    "pad": ("pad_token",),
    "unknown": ("unk_token",),
    "cls": ("cls_token", "bos_token"),
    "sep": ("sep_token", "eos_token"),
    "mask": ("mask_token",),
}
_MOST_MERGES = 16 * 2**20  # characters; CLIP's list has 3 million
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def tokenizer_of(folder: Path, words: int, kind: str = "") -> Tokenizer:
    """The tokenizer of a folder of transformers.

    words: rows of the model's word embeddings.
    kind: the model's model_type. SigLIP's texts begin with no token of their own. SigLIP 2 read lower case in training;
        its tokenizer is Gemma's, whose tokenizer.json does not say so (huggingface/transformers#43054).

    Raises:
        UserError: none there, one with more pieces than the model has words, or one whose texts are padded or cut on
            the left, or stand between other tokens than it names.
    """
    with refused(f"{folder}: its tokenizer cannot be read"):
        return _tokenizer_of(folder, words, kind)


def _tokenizer_of(folder: Path, words: int, kind: str) -> Tokenizer:
    files = (folder / "special_tokens_map.json", folder / "tokenizer_config.json")
    settings: dict[str, Any] = {}
    for path in files:
        settings |= json_if_there(path) or {}
    inner = _inner(folder, bool(settings.get("do_lower_case", True)))
    if "left" in (_side(settings, "padding", inner.padding), _side(settings, "truncation", inner.truncation)):
        raise UserError(f"{folder}: texts padded or cut on the left are not read here")
    inner.no_padding()  # which may be to any length
    inner.no_truncation()
    rules: dict[str, Any] = {"normalise": False, "size": words}
    if not settings and not (folder / "tokenizer.json").is_file() and (folder / "vocab.txt").is_file():
        return Tokenizer(
            inner, str(folder), (), rules
        )  # BERT's plain list, whose special tokens have their usual names
    for role, names in ROLES.items():
        token = next((settings[name] for name in names if settings.get(name)), None)
        rules[role] = token["content"] if isinstance(token, dict) else token
    siglip = kind.startswith("siglip")
    if siglip:
        rules["cls"] = None
    rules["unknown"] = rules["unknown"] or rules["sep"]
    rules["pad"] = rules["pad"] or rules["unknown"]
    _same_ends(inner, rules, folder)
    if kind.startswith("siglip2") or (siglip and settings.get("do_lower_case")):
        _lower_case(inner)
    tokenizer = Tokenizer(inner, str(folder), (), rules)
    if tokenizer.vocabulary.size > words:
        raise UserError(f"{folder}: the tokenizer has {tokenizer.vocabulary.size} pieces, the model {words} words")
    return tokenizer


def pieces_of(path: Path, words: int) -> Tokenizer:
    """The tokenizer of a BERT `vocab.txt` that published weights were trained with: texts go to it as they are.

    words: rows of the model's word embeddings.

    Raises:
        UserError: as `Tokenizer.load`.
    """
    return Tokenizer(Tokenizer.load(path)._inner, str(path), (), {"normalise": False, "size": words})


def byte_pairs(path: Path, words: int) -> Tokenizer:
    """CLIP's tokenizer from the list of merges that OpenAI's code and open_clip come with, packed by gzip.

    words: rows of the model's word embeddings, which say how many merges there are.

    Raises:
        UserError: not such a file.
    """
    with refused(f"{path}: not the merges of CLIP's tokenizer"), gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.read(_MOST_MERGES).split("\n")
        letters = sorted(pre_tokenizers.ByteLevel.alphabet(), key=_byte_order)
        specials = ["<|startoftext|>", "<|endoftext|>"]
        count = words - 2 * len(letters) - len(specials)
        if not 0 <= count < len(lines):
            raise ValueError(f"{len(lines)} lines, and the model has {words} words")
        merges = [(first, second) for first, second in (line.split() for line in lines[1 : count + 1])]
        vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), *specials]
        places = {piece: k for k, piece in enumerate(vocabulary)}
        model = models.BPE(places, merges, unk_token=specials[1], end_of_word_suffix="</w>")
        inner = tokenizers.Tokenizer(model)
    inner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " ")])
    _lower_case(inner)
    split = pre_tokenizers.Split(tokenizers.Regex(_CLIP_WORDS), "removed", invert=True)
    inner.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    begin, end = specials
    rules = {"cls": begin, "sep": end, "pad": end, "unknown": end, "mask": None, "normalise": False, "size": words}
    return Tokenizer(inner, str(path), (), rules)


def _byte_order(letter: str) -> tuple[bool, int]:
    """CLIP counts bytes that are letters of their own first, then those that stand for another."""
    return ord(letter) >= 256, ord(letter)


def longest(folder: Path) -> float:
    """Tokens that a folder's tokenizer cuts its texts at; infinite where it does not say."""
    length = (json_if_there(folder / "tokenizer_config.json") or {}).get("model_max_length")
    return length if isinstance(length, int | float) and length > 0 else float("inf")


def _side(settings: dict[str, Any], what: str, own: dict[str, Any] | None) -> str:
    """Where transformers pads or cuts: as the config says, else tokenizer.json, else the class (Gemma's: left)."""
    gemma = str(settings.get("tokenizer_class")).removesuffix("Fast") in ("GemmaTokenizer", "Siglip2Tokenizer")
    usual = "left" if gemma and what == "padding" else "right"
    return settings.get(f"{what}_side") or (own or {}).get("direction") or usual


def _same_ends(inner: tokenizers.Tokenizer, rules: dict[str, Any], folder: Path) -> None:
    """Refuses a tokenizer.json that puts other tokens around a text than `Tokenizer` does."""
    if inner.post_processor is None:
        return
    expected = [token for token in (rules["cls"], rules["sep"]) if token]
    empty = inner.encode("")
    ends = [token for token, added in zip(empty.tokens, empty.special_tokens_mask, strict=True) if added]
    if rules["sep"] and ends != expected:
        raise UserError(
            f"{folder}: texts stand between {quoted(ends)}, not {quoted(expected)}, "
            "as the tokenizer's config names them"
        )


def _lower_case(inner: tokenizers.Tokenizer) -> None:
    if "Lowercase" not in str(inner.normalizer):
        after = [] if inner.normalizer is None else [inner.normalizer]
        inner.normalizer = normalizers.Sequence([normalizers.Lowercase(), *after])


def _inner(folder: Path, lowercase: bool) -> tokenizers.Tokenizer:
    if (folder / "tokenizer.json").is_file():
        path = folder / "tokenizer.json"
        text = text_of(path)
        with refused(f"{path}: not of the tokenizers library"):
            refuse_unbounded(json.loads(text), str(path))
            return tokenizers.Tokenizer.from_str(text)
    if (folder / "vocab.txt").is_file():
        return Tokenizer.load(folder / "vocab.txt", lowercase)._inner
    slow = ("vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
    if not any((folder / name).is_file() for name in slow):
        raise UserError(f"{folder}: no tokenizer there (tokenizer.json, vocab.txt or {', '.join(slow)})")
    tokenizer = transformers_package().AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise UserError(f"{folder}: the tokenizer cannot be read without tokenizer.json")
    return tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())


def trimmed(tokenizer: Tokenizer, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer with the pieces alone that the texts use, single characters of those, ASCII and special tokens.

    Every given text gets the same pieces as before: those left out were in no best split of any.

    Raises:
        UserError: for a model of merges (BPE), whose pieces stand on each other.
    """
    state = json.loads(tokenizer.to_json())
    kind = state["model"]["type"]
    if kind not in ("Unigram", "WordPiece"):
        raise UserError(f"a {kind} vocabulary cannot be cut down to a corpus; only Unigram and WordPiece can")
    used: set[int] = set()
    for text in texts:
        used.update(tokenizer.ids([text])[0].tolist())
    pieces = [tokenizer._inner.id_to_token(i) for i in sorted(used)]
    singles = {letter for piece in pieces if piece for letter in piece} | {chr(k) for k in range(33, 127)}
    specials = {tokenizer._inner.id_to_token(i) for i in tokenizer._specials()}
    needed = {piece for piece in pieces if piece} | singles | {f"##{letter}" for letter in singles} | specials
    needed |= {token["content"] for token in state["added_tokens"]}
    old = state["model"]["vocab"]
    if kind == "Unigram":
        vocabulary = [entry for entry in old if entry[0] in needed]
        state["model"]["vocab"] = vocabulary
        unknown = old[state["model"]["unk_id"]][0]
        state["model"]["unk_id"] = next(k for k, entry in enumerate(vocabulary) if entry[0] == unknown)
        places = {entry[0]: k for k, entry in enumerate(vocabulary)}
    else:
        vocabulary = [piece for piece in sorted(old, key=old.get) if piece in needed]
        places = {piece: k for k, piece in enumerate(vocabulary)}
        state["model"]["vocab"] = places
    for token in state["added_tokens"]:
        token["id"] = places.setdefault(token["content"], len(places))
    state["post_processor"] = None
    rules = {name: value for name, value in tokenizer.rules.items() if name != "size"}
    return Tokenizer._from_json(
        json.dumps(state), "the trimmed tokenizer", tokenizer.dictionary, rules, tokenizer.lexicon
    )


def rows_of(words: Tensor, before: Tokenizer, after: Tokenizer) -> Tensor:
    """The word embeddings [V', W] of a trimmed tokenizer from those [V, W] of the tokenizer it was cut from."""
    pieces = [after._inner.id_to_token(i) for i in range(after.vocabulary.size)]
    ids = [before._inner.token_to_id(piece or "") for piece in pieces]
    return words[torch.tensor([before.vocabulary.unknown if i is None else i for i in ids])]
