"""ROCO (Pelka et al. 2018) and ROCOv2 (Rückert et al. 2024): radiology pictures of open articles with their captions.

ROCO (github.com/razorx89/roco-dataset): data/{train,validation,test}/radiology/ with captions.txt ("ROCO_00020", tab,
caption), dlinks.txt (id, a wget command for the article's archive, the file in it), cuis.txt (id and UMLS concepts,
tabs between), and what scripts/fetch.py made: images/PMC3970251_NAME.jpg, or images/ROCO_00020.jpg. Its
non-radiology folders are not read. ROCOv2 (Zenodo 10821435): {train,valid,test}_captions.csv (ID, Caption),
{train,valid,test}_concepts.csv (ID, CUIs with semicolons) and pictures called by ID. The column "concepts" lists CUIs.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from tuwen.data.corpora.captions import Annotation, CaptionSet, split_name
from tuwen.data.corpora.csv_rows import csv_rows
from tuwen.data.corpora.faults import Fault, Faults
from tuwen.data.corpora.lines import Lines
from tuwen.data.corpora.published import Format
from tuwen.errors import UserError, quoted

SPLITS = {"train": "train", "validation": "val", "test": "test"}
_ID = re.compile(r"ROCO(?:v2_20\d\d_(?:train|valid|test))?_\d{1,12}")
_CONCEPT = re.compile(r"C\d{7}")
_ARCHIVE = re.compile(r"/(PMC\d{1,12})\.tar\.gz\b")


class Roco(CaptionSet):
    private = True

    def __init__(self, root: Path):
        super().__init__(root)
        listed = [path for path, _ in self.folder.matching(r"captions\.txt") if path.parent.name == "radiology"]
        self.annotations = [(path, SPLITS[path.parts[-3]]) for path in listed if path.parts[-3] in SPLITS]
        if not self.annotations:
            raise UserError(f"{root}: no file train/radiology/captions.txt in it; see `tuwen data list`")

    def read_annotations(self, faults: Faults) -> Iterator[Annotation]:
        for path, split in self.annotations:
            beside = path.parent
            concepts = dict(_concepts(beside / "cuis.txt"))
            archives = dict(_archives(beside / "dlinks.txt"))
            for line, name, caption in _tabbed(path, faults):
                own = (beside / "images").relative_to(self.root).as_posix()
                called = f"{own}/{name}.jpg"
                if not (self.root / called).is_file() and name in archives:
                    called = f"{own}/{archives[name]}"
                columns = {"concepts": concepts.get(name, [])}
                yield Annotation(path, line, split, called, {"en": [caption]}, name, columns)


class RocoV2(CaptionSet):
    private = True

    def __init__(self, root: Path):
        super().__init__(root)
        there = {split: self.folder.annotation(f"{split}_captions.csv") for split in ("train", "valid", "test")}
        self.annotations = {split: path for split, path in there.items() if path}
        if not self.annotations:
            self.needed("train_captions.csv")

    def read_annotations(self, faults: Faults) -> Iterator[Annotation]:
        for split, path in self.annotations.items():
            concepts = dict(self._concepts(split, Faults("skip", faults.private)))
            for row, line in csv_rows(path, ("ID", "Caption"), faults):
                if not _ID.fullmatch(row["ID"]):
                    faults.add(Fault(path, line, "broken row", f"{quoted(row['ID'], 60)} is no id of the set"))
                    continue
                columns = {"concepts": concepts.get(row["ID"], [])}
                texts = {"en": [row["Caption"]]}
                yield Annotation(path, line, split_name(split), f"{split}/{row['ID']}.jpg", texts, row["ID"], columns)

    def _concepts(self, split: str, faults: Faults) -> Iterator[tuple[str, list[str]]]:
        path = self.folder.annotation(f"{split}_concepts.csv")
        for row, _ in csv_rows(path, ("ID", "CUIs"), faults) if path else ():
            yield row["ID"], _CONCEPT.findall(row["CUIs"])


def _tabbed(path: Path, faults: Faults) -> Iterator[tuple[int, str, str]]:
    """(line, id, the rest) of each line."""
    with Lines(path, faults) as lines:
        for text in lines:
            name, tab, rest = text.rstrip("\r\n").partition("\t")
            if tab and _ID.fullmatch(name):
                yield lines.number, name, rest
            elif text.strip():
                faults.add(Fault(path, lines.number, "broken row", "a line is an id, a tab and what belongs to it"))


def _concepts(path: Path) -> Iterator[tuple[str, list[str]]]:
    for _, name, rest in _tabbed(path, Faults("skip")) if path.is_file() else ():
        yield name, _CONCEPT.findall(rest)


def _archives(path: Path) -> Iterator[tuple[str, str]]:
    """What fetch.py called the pictures: the article's number and the name in its archive."""
    for _, name, rest in _tabbed(path, Faults("skip")) if path.is_file() else ():
        archive, inside = _ARCHIVE.search(rest), rest.rsplit("\t", 1)[-1].strip()
        if archive and inside and "/" not in inside:
            yield name, f"{archive[1]}_{inside}"


FORMATS = (
    Format(
        name="roco",
        title="ROCO, radiology pictures of articles",
        languages=("en",),
        needs="data/{train,validation,test}/radiology/{captions,dlinks,cuis}.txt and its images/, by scripts/fetch.py",
        ask="github.com/razorx89/roco-dataset",
        licence="as each article's (CC BY and kin, licences.txt)",
        records="train 65,460 pictures, validation 8,183, test 8,182",
        read=Roco,
    ),
    Format(
        name="roco-v2",
        title="ROCOv2, radiology pictures of articles",
        languages=("en",),
        needs="{train,valid,test}_captions.csv, {train,valid,test}_concepts.csv and train/, valid/, test/",
        ask="zenodo.org/records/10821435",
        licence="as each article's (license_information.csv)",
        records="train 59,958 pictures, valid 9,904, test 9,927",
        read=RocoV2,
    ),
)
