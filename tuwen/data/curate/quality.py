"""What can be measured of a picture or a text by itself, and which of many are nearly the same."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from tuwen.data.corpus import normalise
from tuwen.data.images import resize, to_pillow

# beside those a corpus declares: the languages a text is taken for
COMMON = ("en", "zh", "ja", "ko", "fr", "de", "es", "pt", "it", "ru", "ar", "nl", "cs", "pl", "tr", "vi", "th")
# what programs write where a cell has no text
PLACEHOLDERS = ("nan", "null", "none", "nil", "n/a", "#n/a", "<na>", "undefined", "#value!", "#ref!", "#name?")
_LOOKED_AT = 64  # pixels a side at which colours are counted
_SHINGLE = 3  # characters; of Chinese about two words
_HASHES = 64


@dataclass(frozen=True)
class QualityLimits:
    """What is remarked on.

    side: pictures with a shorter side, in pixels. aspect: longer over shorter side above this (Wukong's filter: 3).
    flat: share of pixels of one colour from which a picture is mostly empty.
    distance: bits of 64 in which the perceptual hashes of nearly equal pictures differ at most.
    likeness: Jaccard similarity of the three-character pieces of nearly equal texts.
    unsure: a text's declared language is doubted below this confidence, if another has more than 1 - `unsure`.
    """

    side: int = 64
    aspect: float = 3.0
    flat: float = 0.95
    distance: int = 4
    likeness: float = 0.8
    unsure: float = 0.05


def is_placeholder(text: str) -> bool:
    """Whether a text is what a program writes for none, as "nan" and "NULL"."""
    return normalise(text).casefold() in PLACEHOLDERS


def is_grey(image: Tensor) -> bool:
    """Whether nearly all pixels (99.5 %) of [3, H, W] uint8 have channels within 8 levels: JPEG tints greys."""
    pixels = _sample(image).to(torch.int16)
    spread = pixels.amax(0) - pixels.amin(0)
    return float((spread <= 8).double().mean()) >= 0.995


def flatness(image: Tensor) -> float:
    """Share of the pixels of [3, H, W] uint8 that are within 12 levels of the commonest colour in each channel."""
    pixels = _sample(image).reshape(3, -1).to(torch.int64)
    coarse = pixels // 16
    codes = coarse[0] * 256 + coarse[1] * 16 + coarse[2]
    commonest = pixels[:, codes == codes.mode().values].double().mean(1, keepdim=True)
    return float(((pixels - commonest).abs() <= 12).all(0).double().mean())


def perceptual_hash(image: Tensor) -> int:
    """64 bits of the low frequencies of [3, H, W] uint8 (pHash, by imagehash); small changes leave most alike."""
    import imagehash

    bits = imagehash.phash(to_pillow(resize(image, 32))).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_hashes(hashes: Sequence[int], distance: int) -> Iterator[tuple[int, int]]:
    """Positions (first, second) of all pairs of 64-bit hashes that differ in at most `distance` bits, each once.

    Two hashes that differ in d bits agree in one of d + 1 bands of them, so only those that share a band are compared.
    """
    values = np.array(hashes, dtype=np.uint64)
    seen: set[tuple[int, int]] = set()
    edges = np.linspace(0, 64, distance + 2).round().astype(int)
    for low, high in itertools.pairwise(edges):
        band = (values >> np.uint64(low)) & np.uint64(2 ** int(high - low) - 1)
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(band[order]) != 0, True]) if len(values) else np.array([0])
        for begin, end in itertools.pairwise(starts):
            for at in range(begin, end - 1):
                first, others = order[at], order[at + 1 : end]
                close = others[np.bitwise_count(values[others] ^ values[first]) <= distance]
                seen.update((min(int(first), int(o)), max(int(first), int(o))) for o in close)
    yield from sorted(seen)


def near_texts(texts: Sequence[str], likeness: float) -> Iterator[tuple[int, int]]:
    """Positions (first, second) of pairs of texts whose pieces have at least that Jaccard similarity, each once.

    Candidates come from MinHash with locality-sensitive hashing (datasketch), each is then compared exactly: none is
    wrong, a few (about one in a hundred just above `likeness`) are not found.
    """
    from datasketch import MinHash, MinHashLSH

    pieces = [shingles(text) for text in texts]
    index = MinHashLSH(threshold=max(likeness - 0.1, 0.05), num_perm=_HASHES, weights=(0.1, 0.9))
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(texts), 4096):
        block = [[piece.encode() for piece in sorted(some)] for some in pieces[start : start + 4096]]
        for place, sketch in enumerate(MinHash.bulk(block, num_perm=_HASHES), start):
            pairs += [(other, place) for other in index.query(sketch)]
            index.insert(place, sketch)
    for first, second in sorted(pairs):
        common = len(pieces[first] & pieces[second])
        if common >= likeness * (len(pieces[first]) + len(pieces[second]) - common):
            yield first, second


def shingles(text: str) -> frozenset[str]:
    """The runs of three characters of a text without case and white space; of a shorter one the text itself."""
    plain = "".join(normalise(text).casefold().split())
    return frozenset(plain[k : k + _SHINGLE] for k in range(max(len(plain) - _SHINGLE + 1, 1)))


class LanguageCheck:
    """Whether texts are in the language they are said to be in, by lingua.

    declared: the languages of the corpus; texts of one that lingua does not know ("und") are never doubted.
    """

    def __init__(self, declared: Sequence[str]):
        self.languages = frozenset({*COMMON, *map(_code, declared)} & _languages().keys())

    def doubt(self, text: str, language: str, unsure: float) -> str | None:
        """The language the text seems to be in instead of the declared one; None where that may be right.

        Texts too short to tell (under 20 letters, 6 where most are not Latin) are passed over.
        """
        code = _code(language)
        letters = [letter for letter in text if letter.isalpha()]
        foreign = sum(letter > "ɏ" for letter in letters)
        if code not in _languages() or len(letters) < (6 if 2 * foreign > len(letters) else 20):
            return None
        declared = taken = _languages()[code]
        for accurate in (False, True):  # what is quick doubts now and then where the other does not
            confidences = _detector(self.languages, accurate).compute_language_confidence_values(text)
            values = {confidence.language: confidence.value for confidence in confidences}
            taken = max(values, key=lambda language: values[language])
            if taken == declared or values.get(declared, 0.0) >= unsure or values[taken] <= 1 - unsure:
                return None
        return taken.iso_code_639_1.name.lower()


@cache
def _languages() -> dict:
    """lingua's languages by their ISO 639-1 code."""
    from lingua import Language

    return {language.iso_code_639_1.name.lower(): language for language in Language.all()}


@cache
def _detector(codes: frozenset[str], accurate: bool):
    """By trigrams alone, which loads in a third of a second; or, accurate, by runs of one to five letters."""
    from lingua import LanguageDetectorBuilder

    languages = (_languages()[code] for code in sorted(codes))
    builder = LanguageDetectorBuilder.from_languages(*languages)
    return (builder if accurate else builder.with_low_accuracy_mode()).build()


def _code(language: str) -> str:
    return language.lower().replace("_", "-").split("-")[0]


def _sample(image: Tensor) -> Tensor:
    """Every so many pixels of a picture, at most about 64 a side."""
    return image[:, :: max(1, image.shape[1] // _LOOKED_AT), :: max(1, image.shape[2] // _LOOKED_AT)]
