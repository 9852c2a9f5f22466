"""Pictures: decode, resize, augment. A picture is a tensor [3, H, W] uint8 RGB from here on.

JPEG is decoded by simplejpeg (libjpeg-turbo), every other format by Pillow; both honour the EXIF
orientation. Nothing broken is filled with grey: it raises `BrokenImage` with one of the `REASONS`.
"""

import io
import math
import os
import re
import stat
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import (  # the plugins register the formats that pictures may have; no other is ever tried
    AvifImagePlugin,  # noqa: F401
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    IcoImagePlugin,  # noqa: F401
    Image,
    ImageEnhance,
    ImageOps,
    Jpeg2KImagePlugin,  # noqa: F401
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,
    WebPImagePlugin,  # noqa: F401
)
from torch import Tensor

from tuwen.data import dicom, jpeg
from tuwen.data.corpus import BrokenImage
from tuwen.data.given import POINTED, is_pointer
from tuwen.data.png import check_png

REASONS = ("missing", "not a file", "unreadable", "empty", "not a picture", "truncated", "damaged", "too large")

MAX_PIXELS = 100_000_000  # 300 MB of memory once decoded
MAX_BYTES = 512 * 2**20
# A scan of a JPEG takes about as long as all its pixels do, however few bytes it has. Encoders write ten or so.
MAX_SCANS = 500
MAX_FULL_SCANS = 16  # over a picture of as many pixels as may be; over a smaller one, more
_NAMES = "jpg jpeg jpe jfif png gif webp bmp tif tiff avif jp2 ppm pgm"
with suppress(ImportError):  # phones' pictures, by an extra: pip install 'tuwen[heic]'
    from pillow_heif import register_heif_opener

    register_heif_opener()
    _NAMES += " heic heif"
if dicom.reads_dicom():  # medical pictures, by the extra `medical`
    _NAMES += " dcm dicom"
EXTENSIONS = frozenset(f".{name}" for name in _NAMES.split())  # of the files a folder of pictures is read from

_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF", "ICO")
_ORIENTATION = 0x0112  # the EXIF tag
_WHITE = (255, 255, 255, 255)
# what libjpeg says of sound files that are only odd; Pillow takes these
_HARMLESS = ("unknown adobe", "invalid sos", "bad icc", "unsupported color", "unsupported jpeg", "data precision")

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # refused below, from the header
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")  # of EXIF blocks

Resample = Literal["bicubic", "bilinear", "nearest", "lanczos", "box", "hamming"]


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Tensor:
    """[3, H, W] uint8 RGB of an encoded picture, upright by its EXIF orientation.

    Transparent pixels are composited on white, 16-bit grey is scaled to 8 bits, an animation gives its first frame,
    a DICOM file what `dicom` says.

    Raises:
        BrokenImage: "empty", "not a picture", "truncated", "damaged", or "too large" (more than `max_pixels`, or
            scans of a JPEG that would take longer than so many pixels may), seen before anything is decoded.
    """
    if dicom.is_dicom(data):
        return dicom.decode_dicom(data, max_pixels, lambda frame: _open(frame, max_pixels).size)
    pixels = _decode_jpeg(data, max_pixels) if data[:3] == b"\xff\xd8\xff" else None
    if pixels is None:
        image = _open(data, max_pixels)
        try:
            return from_pillow(image)
        except BrokenImage:
            raise
        except Exception as error:  # Pillow's decoders raise a dozen kinds on bad bytes
            raise _broken(error, data) from None
    return _upright(torch.from_numpy(pixels).permute(2, 0, 1), _jpeg_orientation(data)).contiguous()


def probe(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) from the header, after checks that cost no decoding: known format, size, a proper end.

    What is damaged in the middle is found by `decode` only.

    Raises:
        BrokenImage: as `decode`.
    """
    if dicom.is_dicom(data):
        return dicom.dicom_size(data, max_pixels)
    size = None
    if data[:3] == b"\xff\xd8\xff":
        size = _jpeg_size(data, max_pixels)
        if data.rfind(b"\xff\xd9") < max(0, jpeg.first_scan(data)):
            raise BrokenImage("truncated", "the JPEG ends before its end marker")
    if size is None:
        image = _open(data, max_pixels)
        size = image.height, image.width
    return size


def read_file(path: str | os.PathLike) -> bytes:
    """The bytes of a picture file.

    Raises:
        BrokenImage: "missing", "not a file" (a folder, a pipe, a device), "unreadable", "empty", "too large".
    """
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            raise BrokenImage("not a file", f"{path} is no regular file")
        if info.st_size > MAX_BYTES:
            raise BrokenImage("too large", f"{path} has {info.st_size:,} bytes; at most {MAX_BYTES:,} are read")
        data = Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise BrokenImage("missing", f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise BrokenImage("unreadable", f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not data:
        raise BrokenImage("empty", f"{path} has no bytes")
    return data


Source = str | os.PathLike | bytes | Image.Image | Tensor | np.ndarray  # whatever a user has at hand of a picture


def load(source: Source, max_pixels: int = MAX_PIXELS) -> Tensor:
    """[3, H, W] uint8 RGB of a path, encoded bytes, a Pillow image, or uint8: a tensor [3, H, W], an array [H, W, 3].

    Raises:
        BrokenImage: as `read_file` and `decode`; a tensor or array of another form, or something else altogether.
    """
    if isinstance(source, Tensor | np.ndarray):
        turned = isinstance(source, np.ndarray)
        if source.ndim != 3 or source.shape[2 if turned else 0] != 3 or str(source.dtype).split(".")[-1] != "uint8":
            form = "an array [H, W, 3]" if turned else "a tensor [3, H, W]"
            what = f"{source.dtype} of shape {list(source.shape)}; give {form} of uint8, or a Pillow image"
            raise BrokenImage("not a picture", what)
        return torch.from_numpy(source.transpose(2, 0, 1).copy()) if isinstance(source, np.ndarray) else source
    if isinstance(source, Image.Image):
        return from_pillow(source)
    if not isinstance(source, bytes | str | os.PathLike):
        what = f"a {type(source).__name__}; give a path, encoded bytes, a Pillow image, a tensor or an array"
        raise BrokenImage("not a picture", what)
    return decode(source if isinstance(source, bytes) else read_file(source), max_pixels)


def from_pillow(image: Image.Image) -> Tensor:
    """[3, H, W] uint8 RGB of a Pillow image in any mode, upright by its EXIF orientation."""
    image.load()  # first: Pillow turns some formats upright by itself when it reads the pixels
    orientation = _orientation(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise BrokenImage("not a picture", "floating point pixels have no range; save as 8 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    pixels = np.array(image.convert("RGB"))
    return _upright(torch.from_numpy(pixels).permute(2, 0, 1), orientation).contiguous()


def to_pillow(image: Tensor) -> Image.Image:
    """The Pillow image of [3, H, W] uint8."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def encode_jpeg(image: Tensor, quality: int = 90) -> bytes:
    """JPEG bytes of [3, H, W] uint8, without chroma subsampling."""
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    return simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="444")


def resize(image: Tensor, size: int | tuple[int, ...], resample: Resample = "bicubic") -> Tensor:
    """[3, h, w] uint8, with antialiasing; an int gives a square, the aspect is not kept.

    Bicubic and bilinear are within two levels of Pillow's, rows resized before columns (Pillow 13 turns the order round
    where that is cheaper, which moves single pixels of rough pictures by up to a score). The others are Pillow's own.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if image.shape[1:] == (height, width):
        return image
    if resample not in ("bicubic", "bilinear"):
        picture = to_pillow(image).resize((width, height), Image.Resampling[resample.upper()])
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
    resized = F.interpolate(image[None], (height, width), mode=resample, align_corners=False, antialias=True)
    return resized[0].contiguous()


def shrink(image: Tensor, short_side: int) -> Tensor:
    """[3, h, w] with its shorter side at most `short_side`, the aspect kept; nothing is ever enlarged."""
    height, width = image.shape[1:]
    scale = short_side / min(height, width)
    if scale >= 1:
        return image
    return resize(image, (max(1, round(height * scale)), max(1, round(width * scale))))


def random_resized_crop(
    image: Tensor,
    side: int,
    generator: np.random.Generator,
    scale: tuple[float, float] = (0.5, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """[3, side, side]: a crop of random area (share of the picture) and aspect (width over height), resized.

    The recipe of Inception (Szegedy et al., arXiv 1409.4842), as everybody draws it: ten tries, then the largest
    centre crop within `ratio`.
    """
    top, left, height, width = _draw_crop(image.shape[1], image.shape[2], generator, scale, ratio)
    return resize(image[:, top : top + height, left : left + width], side)


def _draw_crop(height, width, generator, scale, ratio) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random crop."""
    for _ in range(10):
        area = height * width * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(generator.integers(height - h + 1)), int(generator.integers(width - w + 1)), h, w
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    return (height - h) // 2, (width - w) // 2, h, w


def rand_augment(image: Tensor, generator: np.random.Generator, n: int = 2, m: float = 7) -> Tensor:
    """[3, H, W]: `n` operations drawn with replacement, each applied with probability one half at strength m of 10.

    RandAugment (arXiv 1909.13719) without colour operations, as ALBEF trains (arXiv 2107.07651, implementation
    details; magnitudes from memory of its public randaugment code): brightness and sharpness by 0.1 + 1.8 m/10,
    shear by 0.3 m/10, translation by m pixels, rotation by 3 m degrees, the last three to either side with
    (128, 128, 128) let in. There is no flip among them (`data.flip`): captions say left and right.
    """
    picture = to_pillow(image)
    names = list(_OPERATIONS)
    for _ in range(n):
        operation = _OPERATIONS[names[int(generator.integers(len(names)))]]
        applied, sign = generator.random() < 0.5, 1 if generator.random() < 0.5 else -1
        if applied:
            picture = operation(picture, m / 10, sign)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    how = Image.Resampling.BILINEAR
    return image.transform(image.size, Image.Transform.AFFINE, matrix, how, fillcolor=(128, 128, 128))


_OPERATIONS = {
    "Identity": lambda image, level, sign: image,
    "AutoContrast": lambda image, level, sign: ImageOps.autocontrast(image),
    "Equalize": lambda image, level, sign: ImageOps.equalize(image),
    "Brightness": lambda image, level, sign: ImageEnhance.Brightness(image).enhance(0.1 + 1.8 * level),
    "Sharpness": lambda image, level, sign: ImageEnhance.Sharpness(image).enhance(0.1 + 1.8 * level),
    "ShearX": lambda image, level, sign: _affine(image, 1, sign * 0.3 * level, 0, 0, 1, 0),
    "ShearY": lambda image, level, sign: _affine(image, 1, 0, 0, sign * 0.3 * level, 1, 0),
    "TranslateX": lambda image, level, sign: _affine(image, 1, 0, sign * 10 * level, 0, 1, 0),
    "TranslateY": lambda image, level, sign: _affine(image, 1, 0, 0, 0, 1, sign * 10 * level),
    "Rotate": lambda image, level, sign: image.rotate(
        sign * 30 * level, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128)
    ),
}


def _decode_jpeg(data: bytes, max_pixels: int) -> np.ndarray | None:
    """[H, W, 3] uint8, or None for a JPEG that only Pillow reads (CMYK, arithmetic coding, harmless oddities)."""
    if _jpeg_size(data, max_pixels) is None:
        return None
    try:
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:
        message = str(error).lower()
        if any(phrase in message for phrase in _HARMLESS) or _is_padded(message, data):
            return None
        raise BrokenImage("truncated" if "premature end" in message else "damaged", str(error)) from None


def _is_padded(message: str, data: bytes) -> bool:
    """Whether all that is odd is filling before the end marker, as some cameras write; other bytes there are damage."""
    match = re.search(r"(\d+) extraneous bytes before marker 0xd9", message)
    end = data.rfind(b"\xff\xd9")
    return match is not None and len(set(data[end - int(match[1]) : end])) == 1


def _jpeg_size(data: bytes, max_pixels: int) -> tuple[int, int] | None:
    """(height, width) of a JPEG's header, None where Pillow must be asked."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    _refuse_too_large(height, width, max_pixels)
    _refuse_many_scans(data, height * width, max_pixels)
    return None if colours in ("CMYK", "YCCK") else (height, width)


def _refuse_many_scans(data: bytes, pixels: int, max_pixels: int) -> None:
    most = min(MAX_SCANS, MAX_FULL_SCANS * max_pixels // max(1, pixels))
    if jpeg.more_scans(data, most):
        raise BrokenImage("too large", f"a JPEG of more than {most} scans; save it anew")


def _refuse_too_large(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise BrokenImage("too large", f"{width} x {height} pixels; at most {max_pixels:,} are decoded")


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Pillow's view of the header."""
    if not data:
        raise BrokenImage("empty", "no bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise BrokenImage("too large", str(error).split(",")[0]) from None
    except Exception as error:  # Pillow's plugins raise a dozen kinds on bad bytes
        raise _broken(error, data) from None
    _refuse_too_large(image.height, image.width, max_pixels)
    if data[:3] == b"\xff\xd8\xff":
        _refuse_many_scans(data, image.height * image.width, max_pixels)
    if image.format == "PNG":
        check_png(data)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(259) in (
        6,
        7,
    ):  # JPEGs, one a strip or tile
        places = image.tag_v2.get(273) or image.tag_v2.get(324) or ()
        if jpeg.scan_headers(data) > MAX_FULL_SCANS * max(1, len(set(places))):
            raise BrokenImage("too large", f"a TIFF of JPEGs of more than {MAX_FULL_SCANS} scans; save it anew")
    return image


def _broken(error: Exception, data: bytes) -> BrokenImage:
    """Pillow's exceptions in our few reasons."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError):
        return BrokenImage("too large", message)
    if "truncated" in message.lower() or isinstance(error, EOFError) or _riff_cut(data):
        return BrokenImage("truncated", message)
    if isinstance(error, Image.UnidentifiedImageError):
        what = "the file is text" if data[:1] in (b"<", b"{") else "no format known here; save it as JPEG or PNG"
        what = POINTED if is_pointer(data) else what
        return BrokenImage("not a picture", f"{what} (it begins with {data[:8]!r})")
    return BrokenImage("damaged", message)


def _riff_cut(data: bytes) -> bool:
    return data[:4] == b"RIFF" and int.from_bytes(data[4:8], "little") + 8 > len(data)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 where there is none or it cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block does not break the picture
        return 1
    return value if value in range(1, 9) else 1


def _jpeg_orientation(data: bytes) -> int:
    head = data[: 2**17]
    if b"Exif\x00\x00" not in head and b"rientation" not in head:
        return 1
    try:
        return _orientation(Image.open(io.BytesIO(data), formats=("JPEG",)))
    except Exception:  # simplejpeg decoded it, so only the orientation is lost
        return 1


def _upright(image: Tensor, orientation: int) -> Tensor:
    """Undoes an EXIF orientation, as Pillow's `ImageOps.exif_transpose`."""
    if orientation >= 5:
        image = image.transpose(1, 2)
    flips = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(orientation)
    return image if flips is None else image.flip(flips)
