"""Reports with errors made in them: what oversight is to find, and what error correction is to mend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from tuwen.data import draws
from tuwen.data.corpus import Caption, Corpus, Record, languages_and_texts, text_id
from tuwen.data.edits import edited
from tuwen.data.findings import findings_named
from tuwen.data.items import WithColumns

ERRORS = ("swapped", "name", "location", "extent", "negation")
TRIES = 20  # other rows whose report is tried


@dataclass(frozen=True)
class Errors:
    """Makes errors in the reports of a corpus; every draw is of (seed, picture, language) alone."""

    corpus: Corpus
    seed: int = 0

    def of(self, row: int, language: str, kind: str) -> tuple[str, str] | None:
        """(a report of the row, the same with an error of a kind); None where there is nothing to get wrong.

        "swapped" is another row's report, that is true of none of the row's pictures and names no finding of its own;
        "name" exchanges a finding or thing for one that the row has not; the others are of `edits`.
        """
        record = self.corpus.record(row)
        own = [text for text in record.texts.get(language, ()) if text.strip()]
        if not own:
            return None
        draw = draws.uniform(torch.tensor([record.image_id]), TRIES + 2, self.seed, "errors", language, kind)[0]
        numbers = draw.tolist()
        text = own[int(numbers[TRIES] * len(own))]
        if kind == "swapped":
            wrong = self._swapped(row, record, language, numbers)
        else:
            names = [name for name, label in (findings_named(record, language) or {}).items() if label == 1]
            other = self._other_name(language, names, numbers[0]) if kind == "name" else None
            wrong = edited(kind, text, language, names, other)
        return None if wrong is None or text_id(wrong) == text_id(text) else (text, wrong)

    def _swapped(self, row: int, record: Record, language: str, numbers: Sequence[float]) -> str | None:
        own = {text_id(text) for text in record.texts[language]}
        findings = self._findings(record)
        for share in numbers[:TRIES]:
            other = int(share * len(self.corpus))
            theirs = self.corpus.record(other)
            texts = theirs.texts.get(language, ())
            if not texts or findings & self._findings(theirs):
                continue
            chosen = int(numbers[TRIES + 1] * len(texts))
            every = list(languages_and_texts(theirs))
            place = [k for k, (spoken, _) in enumerate(every) if spoken == language][chosen]
            caption = Caption(texts[chosen], language, text_id(texts[chosen]), other, place)
            if caption.id not in own and not len(self.corpus.relevance([row], [caption]).images):
                return texts[chosen]
        return None

    @staticmethod
    def _findings(record: Record) -> set[str]:
        """Findings there, where the row says so in a column of its own; tags do not count, captions tell of parts."""
        if "findings" not in record.columns and "finding" not in record.columns:
            return set()
        return {name for name, label in (findings_named(record, "en") or {}).items() if label == 1}

    def _other_name(self, language: str, names: Sequence[str], share: float) -> str | None:
        others = [name for name in self._known.get(language, ()) if name not in names]
        return others[int(share * len(others))] if others else None

    @cached_property
    def _known(self) -> dict[str, list[str]]:
        """By language, the findings that some row has; the corpus is read once for them all."""
        known: dict[str, set[str]] = {language: set() for language in self.corpus.languages}
        for row in range(len(self.corpus)):
            record = self.corpus.record(row)
            for language, names in known.items():
                named = findings_named(record, language) or {}
                names.update(name for name, label in named.items() if label == 1)
        return {language: sorted(names) for language, names in known.items()}


def with_faults(corpus: Corpus, share: float, seed: int = 0) -> Corpus:
    """The rows with a column "faulty", by language a report for each of theirs: in a share of them with an error of a
    kind drawn, else as it is; and "errors", the kinds, "" where there is none."""
    errors = Errors(corpus, seed)

    def make(record: Record, row: int) -> Mapping[str, Mapping[str, list[str]]]:
        faulty, kinds = {}, {}
        for language, texts in record.texts.items():
            drawn = draws.uniform(torch.tensor([record.image_id]), 1 + len(ERRORS), seed, "faults", language)[0]
            order = drawn[1:].argsort().tolist()
            faulty[language], kinds[language] = list(texts), [""] * len(texts)
            for kind in (ERRORS[k] for k in order) if float(drawn[0]) < share else ():
                pair = errors.of(row, language, kind)
                if pair is not None:
                    where = faulty[language].index(pair[0])
                    faulty[language][where], kinds[language][where] = pair[1], kind
                    break
        return {"faulty": faulty, "errors": kinds}

    return WithColumns(corpus, make, f"faults {share} {seed}")
