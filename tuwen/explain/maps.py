"""A heat map over the picture for each word of a text: by tokens where a system scores by them, by regions where it
locates, else by Grad-CAM.

Shape legend: W words, N image tokens, M text tokens, L tokens of the text, S image states, h x w the grid.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tuwen.data.batch import Images, Texts
from tuwen.data.corpus import BrokenImage, normalise
from tuwen.data.fit import WHOLE, on_whole
from tuwen.data.images import load
from tuwen.data.spans import find_spans
from tuwen.data.text import Vocabulary
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.nn.grad_cam import on_grid, positive_shares
from tuwen.nn.relations import recorded
from tuwen.predictor import Picture, Predictor

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in 0..1
HOW = ("tokens", "regions", "attention")


@dataclass(frozen=True)
class Explanation:
    """What a system sees of a text in a picture.

    words: of the text, in order; by regions its noun phrases, where it has any.
    maps: [W, h, w] float32 over what the system reads of the picture (`part`), row by row from the top left: by tokens
        the cosine of the word with each place, by regions the heat the system locates it by, by attention its share of
        the match's gradient (never negative).
    how: one of `HOW`. score: how well the text fits the picture, as the system ranks pictures in its last stage.
    picture: [3, H, W] uint8, the whole picture; part: x0, y0, x1, y1 in 0..1 of it, what the system reads of it.
    flow: [N, W] share of each word's flow that goes to each image token, columns of non-negative flows summing to 1;
        places: [N, h, w] where those tokens lie; both None but by tokens.
    boxes: [W, 4] each word's best box (x0, y0, x1, y1 in 0..1 of the whole picture), by regions where the system gives
        boxes. located: what `System.locate` gave of the whole text, its boxes of the whole picture too; or None.
    """

    words: list[str]
    maps: Tensor
    how: str
    score: float
    picture: Tensor
    part: Box = WHOLE
    flow: Tensor | None = None
    places: Tensor | None = None
    boxes: Tensor | None = None
    located: Any = None


class WordMaps(NamedTuple):
    """words of a text, and maps [W, h, w] float32 in 0..1 of where each is: 1 at its best place, 0 at its worst.

    part: x0, y0, x1, y1 in 0..1 of the whole picture, the part the maps lie over: what the system reads of it.
    """

    words: list[str]
    maps: Tensor
    part: Box


def word_maps(predictor: Predictor, image: Picture, text: str, language: str | None = None) -> WordMaps:
    """`explain`, with every word's map scaled to 0..1 by itself; a map without a best place is all 0."""
    seen = explain(predictor, image, text, language)
    low, high = seen.maps.amin((1, 2), keepdim=True), seen.maps.amax((1, 2), keepdim=True)
    return WordMaps(seen.words, (seen.maps - low) / (high - low).clamp(min=1e-12), seen.part)


def explain(
    predictor: Predictor, image: Picture, text: str, language: str | None = None, how: str | None = None
) -> Explanation:
    """Where the words of a text are in a picture.

    how: "tokens" (systems that score by tokens), "regions" (systems that locate), "attention" (systems with a cross
        encoder); None: the first of these there is. language: of the text, as the corpus named it; None: told from its
        script.

    Raises:
        UserError: a broken picture, a text without words, or a system that has none of these.
    """
    system = predictor.system
    ways = dict(zip(HOW, (_by_tokens, _by_regions, _by_attention), strict=True))
    can = dict(zip(HOW, map(system.can, ("flow", "locate", "match")), strict=True))
    chosen = how or next((name for name in can if can[name]), None)
    if chosen not in can and chosen is not None:
        raise UserError(f"no explanation by {chosen!r}; there are {', '.join(can)}")
    if chosen is None or not can[chosen]:
        why = {"tokens": "it has no tokens to match", "regions": "it locates nothing"}.get(chosen or "")
        needed = dict(zip(HOW, ("flow", "locate", "match_heat"), strict=True))
        way = f"explain by {chosen}" if chosen else "explain"
        raise system.lacks(way, why or "it looks at no places", needed[chosen or "attention"])
    whole, pictures, texts, words = _inputs(predictor, image, text, language)
    if chosen == "regions":
        words = _pieces(predictor, text, "phrase") or words
    explanation = ways[chosen](predictor, whole, pictures, texts, words)
    if system.can("locate"):
        with torch.no_grad():
            explanation = replace(explanation, located=system.locate(pictures, texts))
    return _on_whole(explanation, predictor.fit.part(*whole.shape[1:]))


def _on_whole(explanation: Explanation, part: Box) -> Explanation:
    """The explanation with its boxes in the whole picture, of which the system read a part."""
    located, boxes, of = explanation.located, explanation.boxes, torch.tensor([part])
    if part != WHOLE and boxes is not None:
        boxes = on_whole(boxes, of)
    if part != WHOLE and located is not None and located.boxes is not None:
        located = replace(located, boxes=on_whole(located.boxes[0], of.to(located.boxes))[None])
    return replace(explanation, part=part, boxes=boxes, located=located)


class _Word(NamedTuple):
    """A word and its tokens start..end-1."""

    text: str
    start: int
    end: int


def _inputs(
    predictor: Predictor, image: Picture, text: str, language: str | None
) -> tuple[Tensor, Images, Texts, list[_Word]]:
    """The whole picture [3, H, W], what the system reads of it, the text and its words."""
    try:
        whole = load(image)
        pixels = predictor.pixels(whole)
    except BrokenImage as error:
        raise UserError(f"the picture cannot be read: {error}") from None
    texts = predictor.tokens([text], language)
    return whole.cpu(), Images(pixels[None]).to(predictor.device), texts, _words(predictor, text)


def _words(predictor: Predictor, text: str) -> list[_Word]:
    """The words of the text that are letters or digits, as far as it was read."""
    words = [word for word in _pieces(predictor, text, "word") if any(sign.isalnum() for sign in word.text)]
    if not words:
        raise UserError(f"no word in the text {text!r}; give a text with words in it")
    return words


def _pieces(predictor: Predictor, text: str, kind: str) -> list[_Word]:
    """The spans of one kind."""
    spans = find_spans([text], predictor.tokenizer, predictor.config.text.length, (kind,))
    assert spans is not None
    plain, places = normalise(text), predictor.tokenizer.places([text])[0]
    return [
        _Word(plain[places[start - 1, 0] : places[end - 2, 1]], start, end)
        for start, end in zip(spans.start.tolist(), spans.end.tolist(), strict=True)
    ]


# ---- by tokens


@torch.no_grad()
def _by_tokens(predictor: Predictor, whole: Tensor, pictures: Images, texts: Texts, words: list[_Word]) -> Explanation:
    """Cosine of each word's tokens with each place, and the flow by which the text chooses among pictures."""
    system = predictor.system
    image, sentence = predictor.encode(pictures), predictor.encode(texts)
    if image.tokens is None or sentence.tokens is None:
        raise system.lacks("explain", "this run has one vector a picture")
    places = system.image_places(pictures)[0].float()  # [N, h, w]
    real = _real(sentence)  # [M], a token each of the text's
    c = image.tokens[0].float() @ sentence.tokens[0].float().T  # [N, M]
    flow = system.flow(image, sentence)[1][0].float()  # [N, M]
    drawn, shares, flows = [], [], []
    for word in words:
        chosen = real.clone()
        chosen[: word.start], chosen[word.end :] = False, False
        if chosen.any():  # a word outside all text tokens takes no part in the score
            drawn.append(word.text)
            shares.append(c[:, chosen].mean(1))
            flows.append(flow[:, chosen].sum(1))
    if not drawn:
        raise system.lacks("explain", "none of the text's words takes part in its score")
    maps = torch.einsum("nw,nyx->wyx", torch.stack(shares, 1), places)
    sent = torch.stack(flows, 1)
    sent = sent / sent.abs().sum(0).clamp(min=1e-12)
    score = float(predictor.first(image, sentence).t2i[0, 0])
    return Explanation(drawn, maps.cpu(), "tokens", score, whole, flow=sent.cpu(), places=places.cpu())


def _real(sentence: Encoded) -> Tensor:
    """[M] bool."""
    assert sentence.tokens is not None
    if sentence.token_mask is not None:
        return sentence.token_mask[0]
    return torch.ones(sentence.tokens.shape[1], dtype=torch.bool, device=sentence.tokens.device)


# ---- by regions


@torch.no_grad()
def _by_regions(predictor: Predictor, whole: Tensor, pictures: Images, texts: Texts, words: list[_Word]) -> Explanation:
    """Heat and best box of each phrase, read by itself as `tuwen eval --task grounding` reads it.

    words: phrases, where the text has any.
    """
    system, language = predictor.system, predictor.languages[int(texts.language[0])]
    every = torch.zeros(len(words), dtype=torch.int64, device=texts.ids.device)
    located = system.locate(pictures.select(every), predictor.tokens([word.text for word in words], language))
    if located.heat is None:
        raise system.lacks("explain", "it locates by boxes alone")
    boxes = None if located.boxes is None else located.boxes[:, 0].float().cpu()
    image, sentence = predictor.encode(pictures), predictor.encode(texts)
    score = float(predictor.final(image, sentence, predictor.first(image, sentence).t2i[:, 0]))
    maps = located.heat.float().cpu()
    return Explanation([word.text for word in words], maps, "regions", score, whole, boxes=boxes)


# ---- by cross-attention


def _by_attention(
    predictor: Predictor, whole: Tensor, pictures: Images, texts: Texts, words: list[_Word]
) -> Explanation:
    """Grad-CAM of the match's log-odds on cross-attention from words to places (Selvaraju 2017; ALBEF, section 6.1).

    A place's share is its attention weight times the weight's gradient where that is positive, averaged over heads and,
    by choice, over all layers but the last (ALBEF takes the third of six): there the match reads the first token alone.
    """
    system = predictor.system
    image = predictor.encode(pictures)
    texts = told_apart(texts, image, system.vocabulary, predictor.config.text.length)
    sentence = predictor.encode(texts)
    looks = {(texts.ids.shape[1], state.shape[1]) for state in image.states.values()}  # of words at places
    with torch.enable_grad(), recorded(system) as relations:
        match = system.match(image, sentence)
        by_word = [relation.attention for relation in relations.values() if relation.attention.shape[2:] in looks]
        shares = positive_shares(match.sum(1), by_word)
    if not shares:
        raise system.lacks(
            "explain", "the match hangs on no attention from words to places; two layers or more have it"
        )
    cam = torch.stack(shares).mean(0)[0].float()  # [L, S]
    maps = torch.stack([on_grid(cam[word.start : word.end].mean(0)) for word in words])
    with torch.no_grad():
        score = float(predictor.rescored(match.float(), predictor.first(image, sentence).t2i[:, 0]))
    return Explanation([word.text for word in words], maps.cpu(), "attention", score, whole)


def told_apart(texts: Texts, image: Encoded, vocabulary: Vocabulary, length: int) -> Texts:
    """The text with another length than the picture has tokens: then shapes tell who looks at whom."""
    if texts.ids.shape[1] not in {state.shape[1] for state in image.states.values()}:
        return texts
    if texts.ids.shape[1] == length:
        raise UserError(f"the text has as many tokens as the picture, and {length} are all that are read; shorten it")
    ids, mask = F.pad(texts.ids, (0, 1), value=vocabulary.pad), F.pad(texts.mask, (0, 1))
    return replace(texts, ids=ids, mask=mask)
