"""DICOM pictures by pydicom (extra `medical`): one frame in 8-bit grey or colour, as a screen would show it.

Of a file only the elements in `TAGS` are read: none of them is of a person, so that no name, number or date of a
patient is ever in a value here or in a message. What is burnt into the pixels stays there.

Grey is what PS3.3 C.11 makes of it: rescaled (slope and intercept, or a table), then the first window (linear,
linear exact, sigmoid), or table; where there is none, 8 bits as they are, else from the least value to the
largest, padding left out; MONOCHROME1 turned round. Of several frames the middle one is shown.
"""

import importlib.util
import io
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuwen.data.corpus import BrokenImage

TAGS = (
    *("Rows", "Columns", "SamplesPerPixel", "PlanarConfiguration", "PhotometricInterpretation", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "SharedFunctionalGroupsSequence"),
)
MOST_FRAMES = 1_000_000
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_PLAIN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
_JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_RLE = "1.2.840.10008.1.2.5"
_GREY, _COLOUR = ("MONOCHROME1", "MONOCHROME2"), ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_BLOCK = 4_000_000  # pixels scaled at once


def is_dicom(data: bytes) -> bool:
    """Whether the bytes begin as DICOM files do: 128 bytes of anything, then four letters."""
    return data[128:132] == b"DICM"


def reads_dicom() -> bool:
    """Whether pydicom is installed."""
    return importlib.util.find_spec("pydicom") is not None


def dicom_size(data: bytes, max_pixels: int) -> tuple[int, int]:
    """(height, width) from the header.

    Raises:
        BrokenImage: as `decode_dicom`; damage of compressed pixels is found by that alone.
    """
    header = _read(data, max_pixels, pixels=False)
    return int(header.Rows), int(header.Columns)


def decode_dicom(data: bytes, max_pixels: int, size_of: Callable[[bytes], tuple[int, int]]) -> Tensor:
    """[3, H, W] uint8 RGB. size_of: (width, height) of a JPEG or JPEG 2000, within the bounds of such pictures.

    Raises:
        BrokenImage: "not a picture" (pydicom is not installed, a form that is not read), "truncated", "damaged",
            "too large".
    """
    header = _read(data, max_pixels, pixels=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = _frame(header, size_of)
            shown = values if header.PhotometricInterpretation in _COLOUR else _shown_grey(header, values)
    except BrokenImage:
        raise
    except Exception as error:  # of bad bytes pydicom raises a dozen kinds, whose texts may quote the file
        raise _damaged(error) from None
    return torch.from_numpy(np.ascontiguousarray(np.broadcast_to(shown, (3, *shown.shape[-2:]))))


def _read(data: bytes, max_pixels: int, pixels: bool) -> Any:
    """The elements named in `TAGS`, checked; with `pixels` the pixel data too."""
    try:
        import pydicom
    except ImportError:
        raise BrokenImage("not a picture", "a DICOM file; install tuwen[medical] to read it") from None
    if _DEFLATED in data:  # would be unpacked whole, whatever its size
        raise BrokenImage("not a picture", "a deflated DICOM file; save it uncompressed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags: Any = [*TAGS, "PixelData"] if pixels else list(TAGS)
            file = io.BytesIO(data)
            header = pydicom.dcmread(file, stop_before_pixels=not pixels, specific_tags=tags)
            _check(header, len(data) - (0 if pixels else file.tell()), max_pixels)
    except BrokenImage:
        raise
    except Exception as error:
        raise _damaged(error) from None
    return header


def _check(header: Any, size: int, max_pixels: int) -> None:
    """Refuses what is not read, from the header alone. size: bytes of the file, from the pixels' element on."""
    syntax, kind = str(header.file_meta.TransferSyntaxUID), header.PhotometricInterpretation
    height, width, frames = int(header.Rows), int(header.Columns), int(header.get("NumberOfFrames") or 1)
    samples, allocated = int(header.SamplesPerPixel), int(header.BitsAllocated)
    stored = int(header.get("BitsStored") or allocated)
    if syntax not in (*_PLAIN, *_JPEG, _RLE):
        raise BrokenImage("not a picture", "a DICOM file compressed in a way not read here; save it uncompressed")
    grey = kind in _GREY and samples == 1 and allocated in (8, 16) and 0 < stored <= allocated
    if not grey and not (kind in _COLOUR and samples == 3 and allocated == 8):
        raise BrokenImage(
            "not a picture", "a DICOM file that is neither grey of 8 or 16 bits nor RGB; export it as PNG"
        )
    if int(header.get("HighBit") or stored - 1) != stored - 1 or not 0 < frames <= MOST_FRAMES or not height * width:
        raise BrokenImage("damaged", "a DICOM header whose numbers do not fit")
    if height * width > max_pixels:
        raise BrokenImage("too large", f"{width} x {height} pixels; at most {max_pixels:,} are decoded")
    if syntax in _PLAIN and size < _frame_bytes(header) * frames + (8, 12)[_PLAIN.index(syntax)]:
        raise BrokenImage("truncated", "the DICOM file ends before its pixels do")


def _frame(header: Any, size_of: Callable[[bytes], tuple[int, int]]) -> np.ndarray:
    """The middle frame: whole numbers [H, W] of grey, or [3, H, W] uint8 RGB."""
    from pydicom.encaps import get_frame
    from pydicom.pixels import get_decoder

    frames = int(header.get("NumberOfFrames") or 1)
    middle, syntax = (frames - 1) // 2, str(header.file_meta.TransferSyntaxUID)
    if syntax not in _PLAIN:
        part = get_frame(header.PixelData, middle, number_of_frames=frames)
        if syntax == _RLE:
            header.PixelData, middle, syntax = _planes(header, part), 0, _PLAIN[1]
            header.PlanarConfiguration = header.NumberOfFrames = 1
            header.file_meta.TransferSyntaxUID = syntax
        elif size_of(part) != (int(header.Columns), int(header.Rows)):
            raise BrokenImage("damaged", "a DICOM file whose frames are not of the size its header says")
    elif len(header.PixelData) < _frame_bytes(header) * frames:
        raise BrokenImage("truncated", "the DICOM file ends before its pixels do")
    values, about = get_decoder(syntax).as_array(header, index=middle)
    if header.PhotometricInterpretation in _GREY:
        return values
    if about["photometric_interpretation"] != "RGB" or values.dtype != np.uint8:
        raise BrokenImage("not a picture", "a DICOM file of colours not read here; export it as PNG")
    return values.transpose(2, 0, 1)


def _frame_bytes(header: Any) -> int:
    return int(header.SamplesPerPixel) * int(header.Rows) * int(header.Columns) * int(header.BitsAllocated) // 8


def _planes(header: Any, part: bytes) -> bytes:
    """A frame of byte planes in PackBits (PS3.5 G) unpacked, plane after plane, no longer than the picture."""
    count = int(header.SamplesPerPixel) * int(header.BitsAllocated) // 8
    starts = np.frombuffer(part[:64], dtype="<u4").tolist()
    if len(starts) < 16 or starts[0] != count:
        raise BrokenImage("damaged", "a DICOM frame in RLE with another number of planes")
    size = int(header.Rows) * int(header.Columns)
    edges = [*starts[1 : count + 1], len(part)]
    planes = [_unpacked(part[begin:end], size) for begin, end in itertools.pairwise(edges)]
    if int(header.BitsAllocated) == 8:
        return b"".join(planes) + b"\0" * (count * size % 2)
    high, low = (np.frombuffer(plane, dtype=np.uint8) for plane in planes)
    return np.stack([low, high], axis=1).tobytes()


def _unpacked(part: bytes, size: int) -> bytes:
    """So many bytes of PackBits: a count and as many bytes, or a count and a byte that is repeated."""
    out, place = bytearray(), 0
    while len(out) < size and place + 1 < len(part):
        count = part[place]
        if count < 128:
            out += part[place + 1 : place + 2 + count]
            place += 2 + count
        else:
            out += part[place + 1 : place + 2] * (257 - count if count > 128 else 0)
            place += 2 if count > 128 else 1
    if len(out) < size:
        raise BrokenImage("truncated", "a DICOM frame in RLE ends before its pixels do")
    return bytes(out[:size])


def _shown_grey(header: Any, values: np.ndarray) -> np.ndarray:
    """[H, W] uint8 of a frame's whole numbers."""
    shares, turned = _transfer(header, values), header.PhotometricInterpretation == "MONOCHROME1"
    out = np.empty(values.shape, dtype=np.uint8)
    step = max(1, _BLOCK // values.shape[1])
    for row in range(0, len(values), step):
        part = shares(values[row : row + step])
        if not np.isfinite(part).all():
            raise BrokenImage("damaged", "a DICOM header whose numbers do not fit")
        out[row : row + step] = (255 * (1 - part if turned else part) + 0.5).astype(np.uint8)
    return out


def _transfer(header: Any, values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """What makes shares of white, 0 to 1, of a frame's whole numbers."""
    from pydicom.pixels import apply_modality_lut, apply_voi

    slope, intercept = (_number(header, name) for name in ("RescaleSlope", "RescaleIntercept"))
    rescaled: Callable[[np.ndarray], np.ndarray]
    if "ModalityLUTSequence" in header:
        rescaled = lambda part: apply_modality_lut(part, header).astype(np.float64)  # noqa: E731
    else:
        rescaled = lambda part: part * (1.0 if slope is None else slope) + (intercept or 0.0)  # noqa: E731
    if "VOILUTSequence" in header:
        white = 2 ** int(header.VOILUTSequence[0].LUTDescriptor[2]) - 1
        return lambda part: (apply_voi(rescaled(part).astype(np.int64), header) / white).clip(0, 1)
    centre, width = (_number(header, name) for name in ("WindowCenter", "WindowWidth"))
    rule = _window(str(header.get("VOILUTFunction") or "LINEAR"), centre, width)
    if rule:
        return lambda part: rule(rescaled(part))
    bare = slope is None and intercept is None and "ModalityLUTSequence" not in header
    if bare and values.dtype == np.uint8 and int(header.get("BitsStored") or 8) == 8:
        return lambda part: part / 255
    padding = header.get("PixelPaddingValue")
    real = values[values != padding] if isinstance(padding, int) else values
    ends = [float(rescaled(np.array([end]))[0]) for end in ((real.min(), real.max()) if real.size else (0, 0))]
    low, high = min(ends), max(ends)
    return lambda part: ((rescaled(part) - low) / (high - low or 1)).clip(0, 1)


def _window(rule: str, centre: float | None, width: float | None) -> Callable[[np.ndarray], np.ndarray] | None:
    """What PS3.3 C.11.2.1.2 makes of rescaled values; None where there is no window that means anything."""
    if centre is None or width is None or width < (1 if rule == "LINEAR" else 1e-9):
        return None
    if rule == "SIGMOID":
        return lambda x: 1 / (1 + np.exp((-4 * (x - centre) / width).clip(-700, 700)))
    if rule == "LINEAR_EXACT":
        return lambda x: ((x - centre) / width + 0.5).clip(0, 1)
    if width == 1:
        return lambda x: (x > centre - 0.5).astype(np.float64)
    return lambda x: ((x - (centre - 0.5)) / (width - 1) + 0.5).clip(0, 1)


def _number(header: Any, name: str) -> float | None:
    """An element's first number, of the file or of all its frames; None where there is none."""
    value = header.get(name)
    for group in header.get("SharedFunctionalGroupsSequence") or () if value is None else ():
        for kind in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            value = next((item.get(name) for item in group.get(kind) or () if item.get(name) is not None), value)
    if hasattr(value, "__iter__") and not isinstance(value, str):
        value = next(iter(value), None)
    return None if value in (None, "") else float(value)


def _damaged(error: Exception) -> BrokenImage:
    truncated = isinstance(error, EOFError)
    return BrokenImage(
        "truncated" if truncated else "damaged", f"no DICOM file that can be read ({type(error).__name__})"
    )
