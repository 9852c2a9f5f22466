"""Answers to questions: their one form, and what an answer earns against those that people gave (VQA v2).

Antol et al. 2015 and the official evaluation, whose forms are followed to the letter where they matter to a score:
punctuation goes (or becomes a space), number words become digits, articles go, contractions get their apostrophes.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from tuwen.data.corpus import normalise

PEOPLE = 10  # answers a question in VQA v2; an answer that three of nine others gave earns all
_PUNCTUATION = tuple(";:/'[]\"()=+\\_><@`,?")
_PERIOD, _COMMA = re.compile(r"\.(?!\d)"), re.compile(r"\d,\d")
_NUMBERS = dict(
    zip(
        ["none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"],
        ["0", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"],
        strict=True,
    )
)
_ARTICLES = ("a", "an", "the")
_CONTRACTIONS = (  # those of the official list that its own punctuation leaves reachable
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd "
    "how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock "
    "oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's "
    "something'd something'll that's there'd there're there's they'd they'll they're they've 'twas wasn't "
    "we've weren't what'll what're what's what've when's where'd where's where've who'd who'll who's "
    "who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've "
)
_WHOLE = {word.replace("'", ""): word for word in _CONTRACTIONS.split()}


def without_punctuation(text: str) -> str:
    """As the official evaluation takes it out: a sign beside a space goes, any other becomes a space; a text with a
    number as 1,000 loses all signs; a full stop stays before a digit alone."""
    bare = text
    for sign in _PUNCTUATION:
        lone = f"{sign} " in text or f" {sign}" in text or _COMMA.search(text) is not None
        bare = bare.replace(sign, "" if lone else " ")
    return _PERIOD.sub("", bare)


def plain_answer(answer: str) -> str:
    """The one form of an answer: what a head learns and says."""
    words = without_punctuation(normalise(answer)).lower().split()
    words = [_NUMBERS.get(word, word) for word in words]
    return " ".join(_WHOLE.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, given: Sequence[str]) -> float:
    """What an answer earns, 0 to 1: against ten people's, the mean over every nine of min(those who gave it / 3, 1);
    against another number of right answers, whether it is one of them.
    """
    plain = plain_answer(answer)
    if len(given) != PEOPLE:
        return float(plain in {plain_answer(right) for right in given})
    people = [without_punctuation(right) if len(set(given)) > 1 else right for right in given]
    same = people.count(plain)
    # leaving out one of those who gave it, or one of the others
    return (same * min((same - 1) / 3, 1.0) + (PEOPLE - same) * min(same / 3, 1.0)) / PEOPLE


def soft_targets(given: Sequence[str]) -> Mapping[str, float]:
    """What each answer earns that anyone gave, by its one form."""
    forms = dict.fromkeys(plain_answer(answer) for answer in given)
    return {form: earned for form in forms if form and (earned := vqa_accuracy(form, given)) > 0}


def most_given(rows: Sequence[Sequence[str]], most: int, least: float) -> tuple[str, ...]:
    """The answers that earn most over all rows, best first: at most so many, each earning at least so much in all."""
    earned: Counter[str] = Counter()
    for given in rows:
        earned.update(soft_targets(given))
    ranked = sorted(earned.items(), key=lambda pair: (-pair[1], pair[0]))
    return tuple(answer for answer, total in ranked[:most] if total >= least)
