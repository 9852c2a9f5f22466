"""What is wrong with a corpus, what is remarkable in it, and what it holds: every split, with files and lines."""

import dataclasses
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.progress import track
from rich.table import Table
from rich.text import Text

from tuwen.data.corpora import asked_lines
from tuwen.data.corpora.faults import one_line
from tuwen.data.corpora.files import EVERY, FileCorpus, NoRows, Source
from tuwen.data.corpus import Corpus
from tuwen.data.curate.check_split import Contents, Finding, SplitReader
from tuwen.data.curate.quality import QualityLimits, near_hashes, near_texts
from tuwen.data.images import EXTENSIONS
from tuwen.data.open import open_corpus, splits_of
from tuwen.data.private import UNSAID, hides
from tuwen.data.text import Tokenizer
from tuwen.errors import printable
from tuwen.speech import spoken

KINDS = (
    *("leak", "duplicate picture", "similar picture", "similar picture in another split"),
    *("picture in another corpus", "similar picture in another corpus", "similar text", "other language"),
    *("truncated text", "small picture", "extreme picture", "grey picture", "empty picture"),
    *("rare ending", "placeholder text"),
)  # what may be found of rows that can be used
SHOWN = 30  # faults printed; the JSON has them all
LEAK = "its picture is in split {split} too ({place}); keep it in one split"
ELSEWHERE = "its picture is in {place} too"


@dataclass
class Findings:
    """What `check` found. Faults are wrong; remarks may be so: they are counted, and `clean` acts on them.

    shared: for each two splits, how many pictures, texts, and pairs of both they have in common. Each shared picture
        is a fault ("leak"), as it flatters a test.
    corpora: what was read, by label.
    """

    location: str
    faults: list[Finding] = field(default_factory=list)
    remarks: list[Finding] = field(default_factory=list)
    splits: dict[str, Contents] = field(default_factory=dict)
    shared: dict[str, dict[str, int]] = field(default_factory=dict)
    corpora: dict[str, Corpus] = field(default_factory=dict, repr=False)

    @property
    def reasons(self) -> dict[str, int]:
        """Faults by reason, the most frequent first."""
        return dict(Counter(fault.reason for fault in self.faults).most_common())

    @property
    def remarkable(self) -> dict[str, int]:
        """Remarks by reason, the most frequent first."""
        return dict(Counter(remark.reason for remark in self.remarks).most_common())

    def __bool__(self) -> bool:
        """Whether there are faults."""
        return bool(self.faults)

    def to_json(self) -> dict[str, Any]:
        named = ("location", "faults", "remarks", "splits", "shared")
        plain = {name: _plain(getattr(self, name)) for name in named}
        if hides(any(corpus.private for corpus in self.corpora.values())):
            for finding in (*plain["faults"], *plain["remarks"]):
                finding["text"] = ""
        return {**plain, "reasons": self.reasons, "remarkable": self.remarkable}

    def __rich__(self) -> Group:
        parts: list[Any] = [self._contents()]
        for pair, common in self.shared.items():
            shared = ", ".join(f"{n} {spoken(what)}" for what, n in common.items())
            parts.append(Text(spoken(f"{printable(pair)} share {shared}")))
        if self.remarks:
            parts.append(Text(f"{counted(self.remarks, 'remark')}: {_listed(self.remarkable)}", style="yellow"))
            parts += [Text(spoken(remark.message)) for remark in self.remarks if remark.reason == "rare ending"][:SHOWN]
        if not self.faults:
            return Group(*parts, Text(spoken("no faults"), style="green"))
        parts.append(Text(f"{counted(self.faults, 'fault')}: {_listed(self.reasons)}", style="red"))
        parts += [Text(spoken(fault.message)) for fault in self.faults[:SHOWN]]
        if len(self.faults) > SHOWN:
            parts.append(Text(spoken(f"... and {len(self.faults) - SHOWN} more; --json lists all")))
        return Group(*parts)

    def _contents(self) -> Table:
        table = Table(title=Text(printable(self.location)), title_justify="left")
        table.add_column("")
        for split in self.splits:
            table.add_column(Text(one_line(split, 40)), justify="right")
        for name in (item.name for item in dataclasses.fields(Contents)):
            values = [_shown(getattr(contents, name)) for contents in self.splits.values()]
            if any(value not in ("", "0") for value in values):
                table.add_row(spoken(name.replace("_", " ")), *map(Text, values))
        return table


def counted(findings: Sequence[Finding], word: str) -> str:
    """As in "1 fault", "2 faults"."""
    return spoken(f"{len(findings)} {word}{'' if len(findings) == 1 else 's'}")


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {spoken(reason)}" for reason, count in counts.items())


def check(
    location: str | Path,
    tokenizer: Tokenizer | None = None,
    quiet: bool = False,
    length: int | None = None,
    against: Sequence[str | Path] = (),
    limits: QualityLimits | None = None,
) -> Findings:
    """Every fault of every split of the corpus at a location, remarks, and what the splits hold. Decodes every picture.

    tokenizer: counts tokens too. length: most tokens a text, special ones included; longer ones are remarked on.
    quiet: no progress bar (there is none off a terminal either). against: other corpora, in which its pictures are
    looked for; their own faults are not told.

    Raises:
        UserError: there is no corpus at all.
    """
    limits = limits or QualityLimits()
    findings = Findings(str(location))
    faults: dict[Finding, None] = {}  # a broken line is found again in every split
    opened: list[SplitReader] = []
    for split in splits_of(location) or (EVERY,):
        try:
            corpus = open_corpus(location, split, on_bad="skip")
        except NoRows as error:
            faults.update((Finding(fault.reason, str(fault)), None) for fault in error.faults)
            if not error.faults:
                faults[Finding("no rows", str(error))] = None
            continue
        faults.update((Finding(fault.reason, str(fault)), None) for fault in corpus.faults)
        faults.update((Finding("changed", line), None) for line in corpus.changed())
        reader = SplitReader(corpus, split, tokenizer, length, limits)
        opened.append(reader)
        for wrong, remarkable in _rows(reader, quiet):
            faults.update(dict.fromkeys(wrong))
            findings.remarks += remarkable
        findings.splits[split] = reader.contents()
    faults.update(dict.fromkeys(_in_no_row([reader.corpus for reader in opened])))
    for first, second in itertools.combinations(opened, 2):
        findings.shared[f"{first.corpus.split} and {second.corpus.split}"] = first.shared(second)
        faults.update(dict.fromkeys(second.copies(first, "leak", LEAK)))
    others = [reader for other in against for reader in _read_other(other, limits, quiet)]
    for reader, other in itertools.product(opened, others):
        findings.remarks += reader.copies(other, "picture in another corpus", ELSEWHERE)
    known = {(finding.split, finding.row) for finding in (*faults, *findings.remarks) if finding.other}
    findings.remarks += [
        finding for finding in _similar_pictures(opened, others, limits) if (finding.split, finding.row) not in known
    ]
    findings.remarks += _similar_texts(opened, limits)
    findings.faults = list(faults)
    findings.corpora = {reader.label: reader.corpus for reader in (*opened, *others)}
    return findings


def _rows(reader: SplitReader, quiet: bool) -> Iterator[tuple[list[Finding], list[Finding]]]:
    console = Console(stderr=True)
    hidden = quiet or not console.is_terminal
    rows = track(range(len(reader.corpus)), reader.label, console=console, transient=True, disable=hidden)
    return (reader.read(row) for row in rows)


def _in_no_row(corpora: list[Corpus]) -> Iterator[Finding]:
    """Pictures that lie beside those of a table, and that no row names."""
    sources = {id(corpus.source): corpus.source for corpus in corpora if isinstance(corpus, FileCorpus)}
    for source in sources.values():
        if next(source.beside(), None) is None:
            continue
        root = os.path.realpath(source.root)
        named = {os.path.normpath(os.path.join(root, image)) for image in _named(source)}
        for folder in sorted({os.path.dirname(path) for path in named}):
            if not os.path.isdir(folder) or os.path.commonpath((root, os.path.realpath(folder))) != root:
                continue  # a row may name anything
            for name in sorted(os.listdir(folder)):
                path, ending = os.path.join(folder, name), os.path.splitext(name)[1].lower()
                if ending in EXTENSIONS and not name.startswith(".") and path not in named:
                    shown = f"a picture {UNSAID}" if hides(source.private) else path
                    what = f"{shown}: in no row of {source.file.name}; give it one, or move the picture away"
                    yield Finding("no text", one_line(what))


def _named(source: Source) -> Iterator[str]:
    """Pictures of a table's rows, and of what is asked of pictures in files beside it; none of other sources."""
    yield from source.beside()
    for name in asked_lines.FILES.values():
        if (source.root / name).is_file():
            yield from asked_lines.AskedLines(source.root / name).beside()


def _read_other(location: str | Path, limits: QualityLimits, quiet: bool) -> Iterator[SplitReader]:
    for split in splits_of(location):
        corpus = open_corpus(location, split, on_bad="skip")
        reader = SplitReader(corpus, f"{corpus.name} {split}", None, None, limits)
        for _ in _rows(reader, quiet):
            pass
        yield reader


def _similar_pictures(opened: list[SplitReader], others: list[SplitReader], limits: QualityLimits) -> Iterator[Finding]:
    """Rows whose picture looks like an earlier one: of the split, of an earlier split, or of another corpus."""
    hashed = [(reader, row, value) for reader in (*others, *opened) for row, value in reader.hashes]
    first: dict[int, int] = {}
    pairs = [(first.setdefault(value, at), at) for at, (_, _, value) in enumerate(hashed)]
    pairs = [(earlier, later) for earlier, later in pairs if earlier != later]
    values = list(first)
    pairs += [(first[values[earlier]], first[values[later]]) for earlier, later in near_hashes(values, limits.distance)]
    reported: set[int] = set()
    for earlier, later in sorted((min(pair), max(pair)) for pair in pairs):
        reader, row, value = hashed[later]
        source, there, near = hashed[earlier]
        if later in reported or reader in others:
            continue
        reported.add(later)
        reason = "similar picture"
        if source is not reader:
            reason += " in another corpus" if source in others else " in another split"
        what = f"looks like {source.place(there)} ({(value ^ near).bit_count()} of 64 bits differ)"
        yield reader.finding(row, reason, what, other=(source.label, there))


def _similar_texts(opened: list[SplitReader], limits: QualityLimits) -> Iterator[Finding]:
    """Texts that are nearly one of an earlier row of the same split."""
    for reader in opened:
        texts = list(reader.texts_at)
        reported: set[int] = set()
        for earlier, later in near_texts(texts, limits.likeness):
            row, there = reader.texts_at[texts[later]], reader.texts_at[texts[earlier]]
            if later not in reported and row != there:
                reported.add(later)
                what = f"{texts[later][:80]!r} is nearly {texts[earlier][:80]!r} of {reader.place(there)}"
                yield reader.finding(row, "similar text", what, texts[later], (reader.label, there))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{one_line(str(key), 40)} {count:,}" for key, count in value.items())
    if isinstance(value, list):
        return " / ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else spoken(value)
