"""Texts become token ids: normalisation, tokenizers, masking."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Vocabulary:
    """What a system must know of a tokenizer: its size and the ids of its special tokens."""

    size: int
    pad: int
    unknown: int
    cls: int
    sep: int
    mask: int
