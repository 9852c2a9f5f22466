"""How good made texts are: BLEU, ROUGE-L and CIDEr-D for captions, BLEU and chrF for translations.

Captions are cut into words by `caption_words`, in pure Python: the scores of two programs compare only where both cut
alike (coco-caption's Java tokenizer keeps other pieces). The scorers themselves give coco-caption's numbers on
equal words. Translations are scored by sacrebleu, whose signature says how.

Shape legend: N candidates, one a picture or source; each has one or more references.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from tuwen.data.corpus import normalise

Words = Sequence[str]

_HAN = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_HAN}]|(?:(?![{_HAN}])\w)+(?:['’-](?:(?![{_HAN}])\w)+)*")
_BY_CHARACTER = ("ja", "ko", "th", "lo", "km", "my", "bo")  # languages that sacrebleu's 13a cannot cut


def caption_words(text: str) -> list[str]:
    """Words in small letters without punctuation; Chinese and Japanese character by character."""
    return _WORD.findall(normalise(text).lower())


def caption_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """{"cider_d", "bleu_1".."bleu_4", "rouge_l"}: CIDEr-D from 0 to 10, the others from 0 to 1.

    references: [N] lists, none empty. CIDEr-D weighs words by how few of the N pictures they are said of, so it says
    nothing of a handful of pictures.
    """
    cut = [caption_words(candidate) for candidate in candidates]
    against = [[caption_words(reference) for reference in several] for several in references]
    bleus = {f"bleu_{k}": score for k, score in enumerate(bleu(cut, against), start=1)}
    return {"cider_d": cider_d(cut, against), **bleus, "rouge_l": rouge_l(cut, against)}


def bleu(candidates: Sequence[Words], references: Sequence[Sequence[Words]], most: int = 4) -> list[float]:
    """BLEU-1 to BLEU-`most` of the whole set (Papineni et al. 2002), against the reference of closest length.

    Zero counts are met as coco-caption does: by adding 1e-15 above and 1e-9 below the line.
    """
    right, proposed = [0] * most, [0] * most
    length = closest = 0
    for words, several in zip(candidates, references, strict=True):
        length += len(words)
        closest += min((len(reference) for reference in several), key=lambda n: (abs(n - len(words)), n))
        for k in range(most):
            counts = ngrams(words, k + 1)
            allowed: Counter[tuple[str, ...]] = Counter()
            for reference in several:
                allowed |= ngrams(reference, k + 1)
            right[k] += sum(min(count, allowed[gram]) for gram, count in counts.items())
            proposed[k] += max(0, len(words) - k)
    ratio = (length + 1e-15) / (closest + 1e-9)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for k in range(most):
        product *= (right[k] + 1e-15) / (proposed[k] + 1e-9)
        scores.append(product ** (1 / (k + 1)) * brevity)
    return scores


def rouge_l(candidates: Sequence[Words], references: Sequence[Sequence[Words]], beta: float = 1.2) -> float:
    """Mean over candidates of the F-score of longest common subsequences (Lin 2004).

    Precision and recall are each the best over the references, as in coco-caption.
    """
    scores = []
    for words, several in zip(candidates, references, strict=True):
        common = [longest_common(words, reference) for reference in several]
        precision = max((c / len(words) for c in common), default=0.0) if words else 0.0
        recall = max(c / len(r) if r else 0.0 for c, r in zip(common, several, strict=True))
        both = precision and recall
        scores.append((1 + beta**2) * precision * recall / (recall + beta**2 * precision) if both else 0.0)
    return sum(scores) / len(scores)


def cider_d(candidates: Sequence[Words], references: Sequence[Sequence[Words]], most: int = 4, sigma=6.0) -> float:
    """Ten times the mean over pictures and references of clipped TF-IDF cosines over n-grams (Vedantam et al. 2015).

    An n-gram's weight is log N minus the log of how many pictures some reference says it of; a candidate's counts are
    clipped at the reference's; differences in length count by a Gaussian of deviation `sigma`. Mean over n = 1..`most`.
    """
    seen: Counter[tuple[str, ...]] = Counter()
    for several in references:
        seen.update({gram for words in several for k in range(most) for gram in ngrams(words, k + 1)})
    log_total = math.log(len(references))

    def weighed(words: Words) -> list[dict[tuple[str, ...], float]]:
        counts = [ngrams(words, k + 1) for k in range(most)]
        return [{g: c * (log_total - math.log(max(1, seen[g]))) for g, c in of_k.items()} for of_k in counts]

    total = 0.0
    for words, several in zip(candidates, references, strict=True):
        own, score = weighed(words), 0.0
        for reference in several:
            away = math.exp(-((max(0, len(words) - 1) - max(0, len(reference) - 1)) ** 2) / (2 * sigma**2))
            score += sum(map(_clipped_cosine, own, weighed(reference))) / most * away
        total += 10 * score / len(several)
    return total / len(candidates)


def _clipped_cosine(own: dict, reference: dict) -> float:
    norms = math.sqrt(sum(v**2 for v in own.values())) * math.sqrt(sum(v**2 for v in reference.values()))
    dot = sum(min(v, reference[gram]) * reference[gram] for gram, v in own.items() if gram in reference)
    return dot / norms if norms else dot


def ngrams(words: Words, size: int) -> Counter[tuple[str, ...]]:
    """How often each run of `size` words comes."""
    return Counter(tuple(words[k : k + size]) for k in range(len(words) - size + 1))


def longest_common(a: Words, b: Words) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = row
        row = [0]
        for k, other in enumerate(b):
            row.append(before[k] + 1 if word == other else max(before[k + 1], row[k]))
    return row[-1]


def translation_scores(candidates: Sequence[str], references: Sequence[str], language: str) -> dict[str, float | str]:
    """{"bleu", "chrf"} from 0 to 100 of the whole set by sacrebleu, and its signatures; case is ignored.

    language: of the references: Chinese is cut by characters, Japanese, Korean, Thai and the like wholly so.
    """
    from sacrebleu.metrics import BLEU, CHRF

    primary = re.split("[-_]", language)[0].lower()
    cut = "zh" if primary in ("zh", "yue") else "char" if primary in _BY_CHARACTER else "13a"
    word, character = BLEU(lowercase=True, tokenize=cut), CHRF(lowercase=True)
    scores = {
        "bleu": word.corpus_score(candidates, [references]).score,
        "chrf": character.corpus_score(candidates, [references]).score,
    }
    return {**scores, "bleu_signature": str(word.get_signature()), "chrf_signature": str(character.get_signature())}
