"""A heat map over the picture for each word of a text: by tokens where a system scores by them, else by Grad-CAM.

Shape legend: W words, N image tokens, M text tokens, L tokens of the text, S image states, h x w the grid.
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tuwen.data.batch import Images, Texts
from tuwen.data.corpus import BrokenImage, normalise
from tuwen.data.images import load
from tuwen.data.spans import find_spans
from tuwen.errors import UserError
from tuwen.model import Model, Picture
from tuwen.nn.encoded import Encoded
from tuwen.nn.transformer import Attention, AttentionRecord


@dataclass(frozen=True)
class Explanation:
    """What a system sees of a text in a picture.

    words: of the text, in order. maps: [W, h, w] float32 over what the system reads of the picture, row by row from the
    top left: by tokens the cosine of the word with each place, by attention its share of the match's gradient (never
    negative). how: "tokens" or "attention". score: how well the text fits the picture, as the system ranks pictures.
    pixels: [3, H, W] uint8, what it reads of the picture. flow: [N, W] share of each word's flow that goes to each
    image token, columns of non-negative flows summing to 1; places: [N, h, w] where those tokens lie; both None by
    attention. located: what `System.locate` gave, or None.
    """

    words: list[str]
    maps: Tensor
    how: str
    score: float
    pixels: Tensor
    flow: Tensor | None = None
    places: Tensor | None = None
    located: Any = None


class WordMaps(NamedTuple):
    """words of a text, and maps [W, h, w] float32 in 0..1 of where each is: 1 at its best place, 0 at its worst."""

    words: list[str]
    maps: Tensor


def word_maps(model: Model, image: Picture, text: str, language: str | None = None) -> WordMaps:
    """`explain`, with every word's map scaled to 0..1 by itself; a map without a best place is all 0."""
    found = explain(model, image, text, language)
    low, high = found.maps.amin((1, 2), keepdim=True), found.maps.amax((1, 2), keepdim=True)
    return WordMaps(found.words, (found.maps - low) / (high - low).clamp(min=1e-12))


def explain(
    model: Model, image: Picture, text: str, language: str | None = None, how: str | None = None
) -> Explanation:
    """Where the words of a text are in a picture.

    how: "tokens" (systems that score by tokens), "attention" (systems with a cross encoder); None: whichever there is,
        tokens first. language: of the text, as the corpus named it; None: told from its script.

    Raises:
        UserError: a broken picture, a text without words, or a system that has neither tokens nor a cross encoder.
    """
    system = model.system
    can = {"tokens": system.can("flow"), "attention": system.can("match")}
    chosen = how or next((name for name in can if can[name]), None)
    if chosen not in can and chosen is not None:
        raise UserError(f"no explanation by {chosen!r}; there are {', '.join(can)}")
    if chosen is None or not can[chosen]:
        raise system.lacks("explain", "it has no tokens to match" if chosen == "tokens" else "it looks at no places")
    pictures, texts, words = _inputs(model, image, text, language)
    found = (_by_tokens if chosen == "tokens" else _by_attention)(model, pictures, texts, words)
    if not system.can("locate"):
        return found
    with torch.no_grad():
        return replace(found, located=system.locate(pictures, texts))


class _Word(NamedTuple):
    """A word and its tokens start..end-1."""

    text: str
    start: int
    end: int


def _inputs(model: Model, image: Picture, text: str, language: str | None) -> tuple[Images, Texts, list[_Word]]:
    try:
        pixels = model.config.model.image.fit(load(image))
    except BrokenImage as error:
        raise UserError(f"the picture cannot be read: {error}") from None
    if language is not None and language not in model.languages:
        raise UserError(f"no language {language!r} in this run; it has {', '.join(model.languages)}")
    words = _words(model, text, model.config.model.text.length)
    return Images(pixels[None]).to(model.device), model.tokens([text], language), words


def _words(model: Model, text: str, length: int) -> list[_Word]:
    """The words of the text that are letters or digits, as far as it was read."""
    found = find_spans([text], model.tokenizer, length, ("word",))
    assert found is not None
    plain, places = normalise(text), model.tokenizer.places([text])[0]
    words = [
        _Word(plain[places[start - 1, 0] : places[end - 2, 1]], start, end)
        for start, end in zip(found.start.tolist(), found.end.tolist(), strict=True)
    ]
    words = [word for word in words if any(sign.isalnum() for sign in word.text)]
    if not words:
        raise UserError(f"no word in the text {text!r}; give a text with words in it")
    return words


# ---- by tokens


@torch.no_grad()
def _by_tokens(model: Model, pictures: Images, texts: Texts, words: list[_Word]) -> Explanation:
    """Cosine of each word's tokens with each place, and the flow by which the text chooses among pictures."""
    system = model.system
    image, sentence = system.encode_images(pictures), system.encode_texts(texts)
    if image.tokens is None or sentence.tokens is None:
        raise system.lacks("explain", "this run has one vector a picture")
    places = system.image_places(pictures)[0].float()  # [N, h, w]
    stands = system.text_places(texts)[0] & _real(sentence)[:, None]  # [M, L]
    c = image.tokens[0].float() @ sentence.tokens[0].float().T  # [N, M]
    flow = system.flow(image, sentence)[1][0].float()  # [N, M]
    kept, shares, flows = [], [], []
    for word in words:
        chosen = stands[:, word.start : word.end].any(1)
        if chosen.any():  # a word outside all text tokens takes no part in the score
            kept.append(word.text)
            shares.append(c[:, chosen].mean(1))
            flows.append(flow[:, chosen].sum(1))
    if not kept:
        raise system.lacks("explain", "none of the text's words takes part in its score")
    maps = torch.einsum("nw,nyx->wyx", torch.stack(shares, 1), places)
    sent = torch.stack(flows, 1)
    sent = sent / sent.abs().sum(0).clamp(min=1e-12)
    score = float(system.scores(image, sentence).t2i[0, 0])
    return Explanation(kept, maps.cpu(), "tokens", score, pictures.pixels[0].cpu(), sent.cpu(), places.cpu())


def _real(sentence: Encoded) -> Tensor:
    """[M] bool."""
    assert sentence.tokens is not None
    if sentence.token_mask is not None:
        return sentence.token_mask[0]
    return torch.ones(sentence.tokens.shape[1], dtype=torch.bool, device=sentence.tokens.device)


# ---- by cross-attention


def _by_attention(model: Model, pictures: Images, texts: Texts, words: list[_Word]) -> Explanation:
    """Grad-CAM of the match's log-odds on cross-attention from words to places (Selvaraju 2017; ALBEF, section 6.1).

    A place's share is its attention weight times the weight's gradient where that is positive, averaged over heads and,
    by choice, over all layers but the last (ALBEF takes the third of six): there the match reads the first token alone.
    """
    system = model.system
    with torch.no_grad():
        image, sentence = system.encode_images(pictures), system.encode_texts(texts)
    with torch.enable_grad(), _recorded(model, image) as records:
        match = system.match(image, sentence)
        by_word = [record.weights for record in records if record.weights.shape[2] == texts.ids.shape[1]]
        gradients = torch.autograd.grad(match.sum(), by_word, allow_unused=True) if by_word else ()
    shares = [
        (weights.detach() * gradient.clamp(min=0))[0].mean(0)
        for weights, gradient in zip(by_word, gradients, strict=True)
        if gradient is not None
    ]
    if not shares:
        raise system.lacks(
            "explain", "the match hangs on no attention from words to places; two layers or more have it"
        )
    cam = torch.stack(shares).mean(0).float()  # [L, S]
    maps = torch.stack([_grid(cam[word.start : word.end].mean(0)) for word in words])
    with torch.no_grad():
        first = image.pooled is not None or system.can("scores")
        cosine = system.scores(image, sentence).t2i[:, 0] if first else match.new_zeros(1)
        score = float(system.rerank(match.detach().float(), cosine))
    return Explanation([word.text for word in words], maps.cpu(), "attention", score, pictures.pixels[0].cpu())


@contextmanager
def _recorded(model: Model, image: Encoded):
    """While it lasts, every cross-attention over one of the picture's states appends to the list it gives."""
    records: list[AttentionRecord] = []

    def watch(module: Attention, given: tuple) -> tuple | None:
        _, memory, *_ = given
        reads = any(memory.shape == state.shape and torch.equal(memory, state) for state in image.states.values())
        return (*given[:4], records, *given[5:]) if reads else None

    hooks = [
        module.register_forward_pre_hook(watch)
        for module in model.system.modules()
        if isinstance(module, Attention) and module.cross
    ]
    try:
        yield records
    finally:
        for hook in hooks:
            hook.remove()


def _grid(shares: Tensor) -> Tensor:
    """[h, w] of the shares [S] of a square of places, with or without a class token before it."""
    side = math.isqrt(len(shares))
    if side * side != len(shares):
        side = math.isqrt(len(shares) - 1)
    if side * side not in (len(shares), len(shares) - 1):
        raise UserError(f"cannot lay {len(shares)} image tokens on a square grid")
    return shares[-side * side :].view(side, side)
