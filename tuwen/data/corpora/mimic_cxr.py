"""MIMIC-CXR and MIMIC-CXR-JPG (Johnson et al., arXiv 1901.07042): chest X-rays with their reports.

Layout (physionet.org, by a signed agreement): mimic-cxr-2.0.0-metadata.csv (dicom_id, subject_id, study_id,
ViewPosition, ...), mimic-cxr-2.0.0-split.csv (dicom_id, study_id, subject_id, split: train, validate, test), perhaps
mimic-cxr-2.0.0-chexpert.csv or -negbio.csv (subject_id, study_id, and a label a finding), each as it is or as .gz;
reports files/p10/p10000032/s50414267.txt (of mimic-cxr-reports.zip); pictures files/p10/p10000032/s50414267/ID.jpg, or
ID.dcm (extra `medical`).

`mimic-cxr`: a row a picture; its texts are the findings and the impression of its study. `mimic-cxr-studies`: a row a
study that has a frontal and a lateral picture, which are its two pictures in that order; other studies are no rows.
Columns: "study", "patient", "view" (PA, AP, LATERAL, ...; two of them), "sections" (which text is which), "findings"
(name: 1 there, 0 not, -1 uncertain, None not mentioned). The corpus is private: see `tuwen.data.private`.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tuwen.data.corpora.captions import Held, checked_caption, split_name
from tuwen.data.corpora.csv_rows import csv_rows
from tuwen.data.corpora.faults import Fault, Faults, RowError
from tuwen.data.corpora.files import CorpusEntry
from tuwen.data.corpora.lines import decoded
from tuwen.data.corpora.published import Format
from tuwen.data.corpora.reports import labels_of, report_sections, texts_of_sections
from tuwen.errors import UserError

LARGEST_REPORT = 2**20  # bytes
FRONTAL, LATERAL = ("PA", "AP"), ("LATERAL", "LL")
_STEM = "mimic-cxr-2.0.0"
_NUMBER = re.compile(r"\d{1,12}")
_DICOM = re.compile(r"[0-9A-Za-z-]{1,80}")
_VIEW = re.compile(r"[A-Z0-9 _-]{0,40}")


class _Picture(NamedTuple):
    name: str
    patient: str
    study: str
    view: str
    split: str
    line: int


class MimicCXR(Held):
    """pairs: rows are studies of a frontal and a lateral picture, not single pictures."""

    private = True

    def __init__(self, root: Path, pairs: bool):
        super().__init__(root)
        self.pairs = pairs
        self.metadata, self.splits = (self._table(name) for name in ("metadata", "split"))
        self.labels = self.folder.annotation(
            *(f"{_STEM}-{labeller}.csv{packed}" for labeller in ("chexpert", "negbio") for packed in ("", ".gz"))
        )
        self.file = self.metadata

    def _table(self, name: str) -> Path:
        return self.needed(f"{_STEM}-{name}.csv", f"{_STEM}-{name}.csv.gz")

    def entries(self, faults: Faults) -> Iterator[CorpusEntry]:
        self.rows, self.files = [], []
        labels = dict(self._labels(faults))
        studies: dict[str, list[_Picture]] = {}
        for picture in self._pictures(faults):
            studies.setdefault(picture.study, []).append(picture)
        for study, pictures in studies.items():
            rows = _pair(pictures) if self.pairs else [(picture,) for picture in pictures]
            if not rows:
                continue
            try:
                texts, columns = texts_of_sections(self._report(study))
            except RowError as error:
                faults.add(Fault(self.metadata, pictures[0].line, error.reason, str(error)))
                continue
            columns |= {"findings": labels[study]} if study in labels else {}
            for row in rows:
                yield self._made(row, texts, columns)

    def _made(self, row: tuple[_Picture, ...], texts: dict[str, list[str]], columns: dict[str, Any]) -> CorpusEntry:
        first, views = row[0], [picture.view for picture in row]
        columns = columns | {"study": first.study, "patient": first.patient}
        columns["view"] = views if self.pairs else first.view
        images = []
        for picture in row:
            place = f"files/p{picture.patient[:2]}/p{picture.patient}/s{picture.study}/{picture.name}"
            ending = next((e for e in (".jpg", ".dcm", ".png") if (self.root / f"{place}{e}").is_file()), ".jpg")
            images.append(self.folder.picture(f"{place}{ending}"))
        name = f"s{first.study}" if self.pairs else first.name
        own = {"id": name, "image": images[0], "further": tuple(images[1:]), "texts": texts, "columns": columns}
        return self.keep(self.metadata, first.line, split=first.split, **own)

    def _pictures(self, faults: Faults) -> Iterator[_Picture]:
        """Every picture of the metadata that has a split, in the metadata's order."""
        splits = {row["dicom_id"]: row["split"] for row, _ in csv_rows(self.splits, ("dicom_id", "split"), faults)}
        needed = ("dicom_id", "subject_id", "study_id", "ViewPosition")
        for row, line in csv_rows(self.metadata, needed, faults):
            name, patient, study, view = (row[column].strip() for column in needed)
            split = splits.get(row["dicom_id"], "")
            numbered = _NUMBER.fullmatch(patient) and _NUMBER.fullmatch(study) and _VIEW.fullmatch(view)
            if not (numbered and _DICOM.fullmatch(name)):
                what = "dicom_id, subject_id, study_id and ViewPosition are not what is published"
                faults.add(Fault(self.metadata, line, "broken row", what))
            elif split not in ("train", "validate", "test"):
                what = f"no split in {self.splits.name}; take the files of one release"
                faults.add(Fault(self.metadata, line, "no split", what))
            else:
                called = "val" if split == "validate" else split_name(split)
                yield _Picture(name, patient, study, view, called, line)

    def _labels(self, faults: Faults) -> Iterator[tuple[str, dict[str, int | None]]]:
        for row, line in csv_rows(self.labels, ("study_id",), faults) if self.labels else ():
            try:
                yield row["study_id"], labels_of(row)
            except ValueError as error:
                faults.add(Fault(self.labels or self.root, line, "wrong type", str(error)))

    def _report(self, study: str) -> dict[str, str]:
        """The sections of a study's report.

        Raises:
            RowError: there is none, it cannot be read, or says nothing.
        """
        try:
            path = self.folder.annotation(f"s{study}.txt")
            if path is None:
                raise RowError("no report", f"no s{study}.txt; unpack mimic-cxr-reports.zip into the folder")
            if path.stat().st_size > LARGEST_REPORT:
                raise RowError("text too long", f"s{study}.txt has over {LARGEST_REPORT:,} bytes; it is no report")
            text = decoded(path.read_bytes(), path)
        except (UserError, OSError) as error:
            raise RowError("unreadable", str(error)) from None
        sections = report_sections(text)
        if not sections:
            raise RowError("empty text", f"s{study}.txt says nothing")
        return {name: checked_caption(words) for name, words in sections.items()}


def _pair(pictures: list[_Picture]) -> list[tuple[_Picture, ...]]:
    """The study's first frontal picture, PA before AP, and its first lateral one; none where it lacks either."""
    sides = [[p for view in views for p in pictures if p.view == view] for views in (FRONTAL, LATERAL)]
    return [tuple(side[0] for side in sides)] if all(sides) else []


def _format(name: str, title: str, records: str, pairs: bool) -> Format:
    return Format(
        name=name,
        title=title,
        languages=("en",),
        needs=f"{_STEM}-{{metadata,split}}.csv, perhaps {_STEM}-chexpert.csv, reports and pictures in files/",
        ask="physionet.org/content/mimic-cxr-jpg, by a signed agreement",
        licence="PhysioNet Credentialed Health Data License 1.5.0; nothing of it may be passed on",
        records=records,
        read=partial(MimicCXR, pairs=pairs),
    )


FORMATS = (
    _format("mimic-cxr", "MIMIC-CXR, chest X-rays with reports", "377,110 pictures of 227,835 studies", False),
    _format("mimic-cxr-studies", "MIMIC-CXR, studies of a frontal and a lateral picture", "a row a study", True),
)
