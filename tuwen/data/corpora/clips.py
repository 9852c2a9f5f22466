"""Videos with captions in the layouts of MSR-VTT, MSVD and LSMDC: "msrvtt:DIR", "msvd:DIR", "lsmdc:DIR".

Each is a folder with the annotations as they are published and the videos below it, in any folder, found by name.
`NAME:DIR,frames=12` says how many frames a row has.
"""

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from tuwen.data import draws
from tuwen.data.corpora.captions import Folder
from tuwen.data.corpora.scripts import language_by_script
from tuwen.data.corpus import Corpus, Record
from tuwen.data.video import frames_of
from tuwen.errors import UserError, quoted, reason_of, refused

SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov")
FRAMES = 12


@dataclass
class Clip:
    """A video by its name without ending, its captions, and the file and line it is named at."""

    name: str
    where: str
    texts: list[str] = field(default_factory=list)


class VideoCorpus(Corpus):
    """A row a video; captions in English unless their script says otherwise. Rows without a video file are left out."""

    def __init__(self, name: str, folder: Path, split: str, clips: list[Clip], frames: int):
        self.name, self.split, self.frames = name, split, frames
        files = _videos(folder)
        self.rows = [(clip, files[clip.name.lower()]) for clip in clips if clip.name.lower() in files]
        self.skipped = +Counter(missing=len(clips) - len(self.rows))
        if not self.rows:
            raise UserError(
                f"{folder}: none of the {len(clips)} videos of split {split} is there ({quoted(clips[0].name)}, ...)"
            )
        spoken = {language_by_script(text) for clip, _ in self.rows for text in clip.texts}
        self.languages = tuple(sorted(spoken))
        digest = hashlib.blake2b(digest_size=16)
        for clip, path in self.rows:
            digest.update(json.dumps([clip.name, clip.texts, path.stat().st_size, frames]).encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def record(self, row: int) -> Record:
        clip, _ = self.rows[row]
        texts: dict[str, list[str]] = {}
        for text in clip.texts:
            texts.setdefault(language_by_script(text), []).append(text)
        return Record(clip.name, texts, draws.key(self.name, clip.name))

    def image(self, row: int) -> Tensor:
        """The frame in the middle."""
        return frames_of(self.rows[row][1], 1)[0]

    def clip(self, row: int) -> Tensor:
        return frames_of(self.rows[row][1], self.frames)


def _videos(folder: Path) -> dict[str, Path]:
    """Video files below a folder, by name without ending, in small letters; links that lead out of it are none."""
    videos: dict[str, Path] = {}
    root = os.path.realpath(folder)
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            stem, ending = os.path.splitext(name)
            real = os.path.realpath(os.path.join(place, name))
            if ending.lower() in SUFFIXES and os.path.commonpath([root, real]) == root:
                videos.setdefault(stem.lower(), Path(place) / name)
    return videos


# ---- annotations


def msrvtt(folder: Path, split: str) -> list[Clip]:
    """MSR-VTT: MSRVTT_data.json; splits by MSRVTT_train.9k.csv and MSRVTT_JSFUSION_test.csv ("1k-A") where they are.

    Without those files, the splits are the JSON's own (train, validate, test). A row of the test file has the one
    sentence it names.
    """
    path = _needed(folder, "MSRVTT_data.json")
    try:
        content = json.loads(path.read_text("utf-8"))
        clips = {str(v["video_id"]): Clip(str(v["video_id"]), str(path)) for v in content["videos"]}
        splits = {str(v["video_id"]): str(v["split"]) for v in content["videos"]}
        for sentence in content["sentences"]:
            clips[str(sentence["video_id"])].texts.append(str(sentence["caption"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"not the annotation of MSR-VTT, videos with video_id and split ({reason_of(error)})"
        raise UserError(f"{path}: {what}") from None
    listed = {"train": "MSRVTT_train.9k.csv", "test": "MSRVTT_JSFUSION_test.csv"}.get(split, "")
    if not listed or not (folder / listed).is_file():
        name_of_split = {"val": "validate"}.get(split, split)
        return [clip for name, clip in clips.items() if splits[name] == name_of_split]
    tested = []
    for number, row in enumerate(_table(_needed(folder, listed), ","), start=2):
        name = row.get("video_id") or ""
        where = f"{folder / listed}:{number}"
        if name not in clips:
            raise UserError(f"{where}: video_id {quoted(name)} is not in {path.name}")
        tested.append(Clip(name, where, [row["sentence"]] if row.get("sentence") else clips[name].texts))
    return tested


def msvd(folder: Path, split: str) -> list[Clip]:
    """MSVD: AllVideoDescriptions.txt (a video's name, then a sentence) and train_list.txt, val_list.txt, test_list.txt.

    The raw-captions.pkl that some copies have instead is never opened: a pickle can run code.
    """
    sentences: dict[str, list[str]] = {}
    path = _needed(folder, "AllVideoDescriptions.txt")
    for line in path.read_text("utf-8", "replace").splitlines():
        name, _, sentence = line.strip().partition(" ")
        if sentence.strip() and not name.startswith("#"):
            sentences.setdefault(name, []).append(sentence.strip())
    listing = _needed(folder, f"{split}_list.txt")
    clips = []
    for number, line in enumerate(listing.read_text("utf-8", "replace").splitlines(), start=1):
        if name := line.strip():
            if name not in sentences:
                raise UserError(f"{listing}:{number}: {quoted(name)} has no sentence in {path.name}")
            clips.append(Clip(name, f"{listing}:{number}", sentences[name]))
    return clips


def lsmdc(folder: Path, split: str) -> list[Clip]:
    """LSMDC: LSMDC16_annos_training.csv, LSMDC16_annos_val.csv, LSMDC16_challenge_1000_publictect.csv; tabs between
    clip, four times, and sentence."""
    names = {
        "train": "LSMDC16_annos_training.csv",
        "val": "LSMDC16_annos_val.csv",
        "test": "LSMDC16_challenge_1000_publictect.csv",
    }
    path = _needed(folder, names[split])
    clips: dict[str, Clip] = {}
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), start=1):
        if not line.strip():
            continue
        parts = line.split("\t")
        if len(parts) < 6:
            raise UserError(
                f"{path}:{number}: {len(parts)} columns; LSMDC has clip, four times and sentence, tabs between"
            )
        clips.setdefault(parts[0], Clip(parts[0], f"{path}:{number}")).texts.append(parts[-1].strip())
    return list(clips.values())


LAYOUTS: dict[str, Callable[[Path, str], list[Clip]]] = {"msrvtt": msrvtt, "msvd": msvd, "lsmdc": lsmdc}
SPLITS = ("train", "val", "test")


def open_clips(location: str, split: str) -> VideoCorpus:
    """One split of "NAME:DIR" or "NAME:DIR,frames=12".

    Raises:
        UserError: a file is not there or not of the layout, or no video is.
    """
    name, _, rest = location.partition(":")
    folder, comma, option = rest.rpartition(",frames=")
    folder, count = (folder, option) if comma else (rest, str(FRAMES))
    if not count.isdigit() or not 1 <= int(count) <= 64:
        raise UserError(f"{location}: frames={count}; write a number from 1 to 64")
    if split not in SPLITS:
        raise UserError(f"{name} has no split {split!r}; it has {', '.join(SPLITS)}")
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder")
    clips = LAYOUTS[name](Path(folder), split)
    if not clips:
        raise UserError(f"{folder}: no video in split {split}")
    return VideoCorpus(name, Path(folder), split, clips, int(count))


def _needed(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise UserError(f"{path}: not there; put the annotation as it is published beside the videos")
    return Folder(folder).plain(path)


def _table(path: Path, delimiter: str) -> list[dict[str, str]]:
    with (
        path.open(encoding="utf-8", errors="replace", newline="") as file,
        refused(f"{path}: no table", "copy it again", (csv.Error,)),
    ):
        return list(csv.DictReader(file, delimiter=delimiter))
