"""A font that has every character of a text: one of the machine's, or that of the package pylopdf-fonts-zh-cn."""

import importlib.util
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from matplotlib import font_manager, ft2font

PACKAGE = "pylopdf-fonts-zh-cn"  # Noto Sans SC, SIL Open Font Licence
_FILE = "NotoSansSC-Regular.otf"
# asked first, in this order: plain, sans serif, made for simplified Chinese
_LIKED = (
    "NotoSansCJK-Regular",
    "NotoSansSC",
    "SourceHanSans",
    "wqy",
    "msyh",
    "PingFang",
    "Hiragino",
    "DroidSansFallback",
)


def font_for(text: str) -> tuple[font_manager.FontProperties, str]:
    """(the font to draw the text with, the characters it lacks): all of them where one is found, else the fewest."""
    codes = {ord(sign) for sign in text if not sign.isspace()}
    if all(code < 0x250 for code in codes):
        return font_manager.FontProperties(), ""
    best: tuple[int, Path | None] = (len(codes) + 1, None)
    for path in _fonts():
        missing = len(codes - _characters(path))
        if missing < best[0]:
            best = missing, path
        if not missing:
            break
    if best[1] is None:
        return font_manager.FontProperties(), ""
    lacking = "".join(sorted({chr(code) for code in codes - _characters(best[1])}))
    return font_manager.FontProperties(fname=best[1]), lacking


def _fonts() -> Iterable[Path]:
    """Font files: the package's, liked ones, all others."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    for folder in (spec.submodule_search_locations if spec else None) or ():
        yield Path(folder) / _FILE
    installed = sorted(Path(path) for path in font_manager.findSystemFonts())
    rank = {
        path: next((k for k, name in enumerate(_LIKED) if path.name.startswith(name)), len(_LIKED))
        for path in installed
    }
    yield from sorted(installed, key=lambda path: rank[path])


@lru_cache(maxsize=256)
def _characters(path: Path) -> frozenset[int]:
    """Code points the font has glyphs for; none where it cannot be read."""
    try:
        return frozenset(ft2font.FT2Font(str(path)).get_charmap())
    except (RuntimeError, OSError):
        return frozenset()
