"""Frames of video files, evenly spaced, by PyAV (extra `video`)."""

import re
from pathlib import Path

import torch
from torch import Tensor

from tuwen.data.corpus import BrokenImage
from tuwen.errors import UserError

TICK = 2e-3  # seconds: Matroska rounds times to milliseconds
BEGINNINGS = {  # first bytes of the containers that are read, with FFmpeg's names
    r".{4}(ftyp|moov|mdat|wide|free|skip)": "mov",
    r"RIFF.{4}AVI ": "avi",
    r"\x1a\x45\xdf\xa3": "matroska",
}


def frames_of(path: Path, count: int) -> Tensor:
    """[count, 3, H, W] uint8 RGB: the frames shown in the middle of `count` equal parts of a video, in order.

    Every frame is decoded, so that files without an index and of changing frame rate are sampled right; of a video of
    fewer frames some come twice.

    Raises:
        UserError: PyAV is not installed.
        BrokenImage: "missing", or "video" for what holds no readable picture.
    """
    try:
        import av
    except ImportError:
        raise UserError("reading videos needs PyAV: install tuwen[video]") from None
    if not path.is_file():
        raise BrokenImage("missing", f"{path}: no such file")
    kind = _container(path)
    try:
        shown = _times(av, path, kind)
        if not shown:
            raise BrokenImage("video", f"{path}: no frame can be read")
        begin, end = shown[0], shown[-1] + (shown[-1] - shown[0]) / max(len(shown) - 1, 1)
        moments = [begin + (k + 0.5) * (end - begin) / count for k in range(count)]
        chosen = [max(n for n, time in enumerate(shown) if time <= moment + TICK) for moment in moments]
        return _decoded(av, path, kind, chosen)
    except av.error.FFmpegError as error:
        raise BrokenImage("video", f"{path}: {error.strerror}") from None


def _container(path: Path) -> str:
    """What the file is by its first bytes. Told so, FFmpeg follows no playlist to other files or addresses.

    Raises:
        BrokenImage: none of those that are read.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(16).decode("latin-1")
    except OSError as error:
        raise BrokenImage("unreadable", f"{path}: {error.strerror}") from None
    for pattern, kind in BEGINNINGS.items():
        if re.match(pattern, head, re.DOTALL):
            return kind
    raise BrokenImage("video", f"{path}: no MP4, QuickTime, AVI, Matroska or WebM")


def _times(av, path: Path, kind: str) -> list[float]:
    """When each frame is shown, in seconds; by its number where the file does not say."""
    with av.open(str(path), format=kind) as container:
        if not container.streams.video:
            return []
        frames = [frame.time for frame in container.decode(video=0)]
    timed = all(time is not None for time in frames) and len(set(frames)) == len(frames)
    return sorted(frames) if timed else [float(n) for n in range(len(frames))]


def _decoded(av, path: Path, kind: str, chosen: list[int]) -> Tensor:
    """The frames of these numbers (ascending, some may repeat)."""
    frames: dict[int, Tensor] = {}
    with av.open(str(path), format=kind) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in chosen:
                frames[number] = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1).contiguous()
            if number >= chosen[-1]:
                break
    return torch.stack([frames[number] for number in chosen])
