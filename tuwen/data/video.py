"""Frames of video files, evenly spaced, by PyAV (extra `video`)."""

from pathlib import Path

import torch
from torch import Tensor

from tuwen.data.corpus import BrokenImage
from tuwen.errors import UserError

TICK = 2e-3  # seconds: Matroska rounds times to milliseconds


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
    try:
        shown = _times(av, path)
        if not shown:
            raise BrokenImage("video", f"{path}: no frame can be read")
        begin, end = shown[0], shown[-1] + (shown[-1] - shown[0]) / max(len(shown) - 1, 1)
        wanted = [begin + (k + 0.5) * (end - begin) / count for k in range(count)]
        chosen = [max(n for n, time in enumerate(shown) if time <= moment + TICK) for moment in wanted]
        return _decoded(av, path, chosen)
    except av.error.FFmpegError as error:
        raise BrokenImage("video", f"{path}: {error.strerror}") from None


def _times(av, path: Path) -> list[float]:
    """When each frame is shown, in seconds; by its number where the file does not say."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            return []
        frames = [frame.time for frame in container.decode(video=0)]
    timed = all(time is not None for time in frames) and len(set(frames)) == len(frames)
    return sorted(frames) if timed else [float(n) for n in range(len(frames))]


def _decoded(av, path: Path, chosen: list[int]) -> Tensor:
    """The frames of these numbers (ascending, some may repeat)."""
    found: dict[int, Tensor] = {}
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in chosen:
                found[number] = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1).contiguous()
            if number >= chosen[-1]:
                break
    return torch.stack([found[number] for number in chosen])
