"""Looking into attention: who looks at what, in which layer.

For DiDE's distillation of attention, SIMLA's keywords and `tuwen.explain`. While nobody looks nothing is paid for it.

Shape legend: B rows, H heads, L queries, S keys, d width of a head; T words of a text, I tokens of a picture.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn

from tuwen.errors import UserError
from tuwen.nn.encoded import Fused
from tuwen.nn.transformer import Attention


class Relation(NamedTuple):
    """What a layer's attention computed, as parts of the graph: losses on them have gradients.

    queries: [B, H, L, d]; keys: [B, H, S, d]. attention: [B, H, L, S], shares of each query that sum to 1 over the keys
    it may see, before dropout.
    """

    queries: Tensor
    keys: Tensor
    attention: Tensor


class RanTwice(AssertionError):
    """A layer whose one relation was asked for ran again."""


@contextmanager
def recorded(system: nn.Module, where: str = ".*") -> Iterator[dict[str, Relation]]:
    """While it lasts, {layer: (queries, keys, attention)} fills with every layer that runs, in the order they run.

        with recorded(system, r"encoders.image.stack.blocks.11.attention") as relations:
            system.encode_images(images)
        (queries, keys, attention), = relations.values()

    where: a regular expression that a layer's whole name matches. A layer is named by its place in the system:
        "attention" is a block's self-attention, "cross" its cross-attention.

    A layer may run once: look at one call at a time. What is looked at is computed by plain products in place of the
    fused kernel, equal up to rounding. A last block that works for one position alone has L = 1. A tower of
    transformers, and states that come from disk, have no layer to look into.

    Raises:
        UserError: if no layer is so named; some names are given.
    """
    layers = {name: module for name, module in system.named_modules() if isinstance(module, Attention)}
    chosen = {name: module for name, module in layers.items() if re.fullmatch(where, name)}
    if not chosen:
        raise UserError(f"no attention layer is named {where!r}; there are {', '.join([*layers][:8]) or 'none'}")
    relations: dict[str, Relation] = {}

    def recorder(name: str):
        def record(queries: Tensor, keys: Tensor, attention: Tensor) -> None:
            if name in relations:
                raise RanTwice(f"{name} ran twice; record one call at a time")
            relations[name] = Relation(queries, keys, attention)

        return record

    for name, module in chosen.items():
        module.recorder = recorder(name)
    try:
        yield relations
    finally:
        for module in chosen.values():
            module.recorder = None


class Crossing(NamedTuple):
    """Queries and keys with which text and picture look at each other, [B, H, T, d] of words and [B, H, I, d] of
    patches; None of a side that nobody looks from, or at."""

    word_queries: Tensor | None
    patch_keys: Tensor | None
    patch_queries: Tensor | None
    word_keys: Tensor | None


class Meeting(NamedTuple):
    """Names of the last layers in which words look at patches and patches at words; "" where none do."""

    at_patches: str
    at_words: str

    @property
    def where(self) -> str:
        """The layers as `recorded` takes them."""
        return "|".join(re.escape(name) for name in dict.fromkeys(self) if name)

    def crossing(self, relations: Mapping[str, Relation], fused: Fused) -> Crossing:
        """What was recorded of these layers while `fused` was made."""
        to_patches, to_words = (relations[name] if name else None for name in self)
        words, patches = fused.words or slice(None), fused.patches or slice(None)
        return Crossing(
            None if to_patches is None else to_patches.queries[:, :, words],
            None if to_patches is None else to_patches.keys[:, :, patches],
            None if to_words is None else to_words.queries[:, :, patches],
            None if to_words is None else to_words.keys[:, :, words],
        )


def meeting_of(relations: Mapping[str, Relation], fused: Fused, words: int, patches: int) -> Meeting:
    """Where text and picture meet, told from all layers recorded while a text of `words` tokens was fused with a
    picture of `patches`, another number: the self-attention of one stream, or cross-attention from one side to the
    other. ("", "") where no layer is over them all, or both are one vector.
    """
    if words == patches:
        return Meeting("", "")
    if fused.words is not None:
        sides = {name: of.attention.shape[2:] for name, of in relations.items()}
        whole = [name for name, (asks, is_asked) in sides.items() if asks == is_asked >= words + patches]
        return Meeting(whole[-1], whole[-1]) if whole else Meeting("", "")
    named = {tuple(of.attention.shape[2:]): name for name, of in relations.items()}
    return Meeting(named.get((words, patches), ""), named.get((patches, words), ""))
