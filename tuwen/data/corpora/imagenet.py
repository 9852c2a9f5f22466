"""Folders of classes, as ImageNet is unpacked: train/CLASS/*.JPEG, val/CLASS/*.JPEG. The texts are the class's names.

Names come from LOC_synset_mapping.txt (`n01440764 tench, Tinca tinca`, of the Kaggle release) or classes.txt of the
same form where there is one, else from the folder, `_` read as a space. Where no folder is named as a split, all
pictures are one split, "all". All class folders are the classes, whichever of them a split shows. Columns: "cls", the
class's rank among them (the order of synset ids, as everybody numbers ImageNet), and "class", its folder. A picture
that lies in no class folder takes its class from LOC_val_solution.csv; of a test split, whose classes were not
published, it is a row without texts.
"""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from tuwen.data import images
from tuwen.data.corpora.captions import SPLITS, Folder, split_name
from tuwen.data.corpora.faults import Fault, Faults
from tuwen.data.corpora.files import EVERY, CorpusEntry, Source
from tuwen.data.corpora.lines import Lines
from tuwen.data.corpora.published import Format
from tuwen.data.corpora.scripts import language_by_script
from tuwen.errors import UserError

LONGEST = 1000  # characters of a class's names


class ClassFolders(Source):
    """A position is a picture's rank among the paths of all splits."""

    def __init__(self, root: Path):
        self.file = self.root = root
        self.folder = Folder(root)
        if not self._pictures:
            raise UserError(f"{root}: no picture in train/CLASS/, val/CLASS/ or CLASS/")

    @cached_property
    def _pictures(self) -> list[tuple[str, str | None, str]]:
        """(path, split, class folder or "") of every picture."""
        pictures = []
        for folder, folders, names in os.walk(self.root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            place = os.path.relpath(folder, self.root).replace(os.sep, "/")
            parts = [] if place == "." else place.split("/")
            split = next((part for part in parts if part in SPLITS), None)
            below = parts[parts.index(split) + 1 :] if split else parts[-1:]
            for name in sorted(names):
                if os.path.splitext(name)[1].lower() in images.EXTENSIONS and not name.startswith("."):
                    path = name if place == "." else f"{place}/{name}"
                    pictures.append((path, split and split_name(split), below[0] if below else ""))
        if not any(split for _, split, _ in pictures):
            return [(path, EVERY, folder) for path, _, folder in pictures]
        return pictures

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        """What each class is called."""
        path = self.folder.annotation("LOC_synset_mapping.txt") or self.folder.annotation("classes.txt")
        classes: dict[str, list[str]] = {}
        if path is not None:
            with Lines(path, Faults("stop")) as lines:
                for text in lines:
                    folder, _, names = text.strip().partition(" ")
                    if folder and names:
                        classes[folder] = [name.strip() for name in names[:LONGEST].split(",") if name.strip()]
        return classes

    @cached_property
    def _solutions(self) -> dict[str, str]:
        path = self.folder.annotation("LOC_val_solution.csv")
        if path is None:
            return {}
        with Lines(path, Faults("stop")) as lines:
            rows = [text.strip().partition(",") for text in lines]
        return {stem: solution.split(" ", 1)[0] for stem, _, solution in rows[1:] if solution}

    @cached_property
    def _ranks(self) -> dict[str, int]:
        folders = {folder for _, _, folder in self._pictures if folder} | set(self._solutions.values())
        return {folder: rank for rank, folder in enumerate(sorted(folders))}

    @cached_property
    def class_names(self) -> dict[str, list[str]]:  # type: ignore[override]
        """The first name of every class, in each language in which all have one; else their folders."""
        first: dict[str, dict[str, str]] = {}
        for folder in self._ranks:
            for language, names in self._texts(folder).items():
                first.setdefault(language, {})[folder] = names[0]
        complete = {
            language: list(names.values()) for language, names in first.items() if len(names) == len(self._ranks)
        }
        return complete or {"en": [folder.replace("_", " ") for folder in self._ranks]}

    def _texts(self, folder: str) -> dict[str, list[str]]:
        texts: dict[str, list[str]] = {}
        for name in self._names.get(folder) or [folder.replace("_", " ")]:
            texts.setdefault(language_by_script(name), []).append(name)
        return texts

    def entries(self, faults: Faults) -> Iterator[CorpusEntry]:
        for position, (path, split, _) in enumerate(self._pictures):
            if not path.isprintable():
                what = "characters in the name that do not print; rename the file"
                faults.add(Fault(self.root / path, 0, "bad name", what))
            elif not self._class(position) and split != "test":
                what = "in no folder of a class, nor in LOC_val_solution.csv; move it"
                faults.add(Fault(self.root / path, 0, "no text", what))
            else:
                yield self.entry(position, 0)

    def entry(self, position: int, line: int) -> CorpusEntry:
        path, split, _ = self._pictures[position]
        folder = self._class(position)
        if not folder:
            return CorpusEntry(position, 0, os.path.splitext(path)[0], path, {}, split)
        texts = self._texts(folder)
        columns = {"cls": self._ranks[folder], "class": folder}
        return CorpusEntry(position, 0, os.path.splitext(path)[0], path, texts, split, columns=columns)

    def place(self, entry: CorpusEntry) -> tuple[Path, int]:
        return self.root / entry.image, 0

    def _class(self, position: int) -> str:
        path, _, folder = self._pictures[position]
        return folder or self._solutions.get(os.path.splitext(os.path.basename(path))[0], "")


FORMATS = (
    Format(
        name="imagenet",
        title="ImageNet, or any folders of classes",
        languages=("en",),
        needs="{train,val}/CLASS/*.JPEG, test/; LOC_synset_mapping.txt for names, LOC_val_solution.csv for a flat val",
        ask="image-net.org, or kaggle.com/c/imagenet-object-localization-challenge",
        licence="research only, pictures keep their owners' rights",
        records="train 1,281,167 pictures, val 50,000, test 100,000 without labels",
        read=ClassFolders,
    ),
)
