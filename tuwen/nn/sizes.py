"""Named sizes of the parts. A system's `Config.sized` takes its towers from here, so that one size means
the same towers in every system."""

from dataclasses import dataclass, replace

from tuwen.errors import UserError


@dataclass(frozen=True)
class ImageTowerConfig:
    """A ViT: `side` and `patch` in pixels.

    pool: "class" (a class token), "mean" or "max" over patches ("max" learns small things soonest from scratch).
    """

    side: int = 224
    patch: int = 16
    width: int = 768
    layers: int = 12
    heads: int = 12
    pool: str = "class"
    activation: str = "gelu"
    pre_norm: bool = False  # CLIP's extra norm before the first block
    final_norm: bool = True  # the norm after the last block
    eps: float = 1e-6
    dropout: float = 0.0


@dataclass(frozen=True)
class TextTowerConfig:
    """A text encoder: `kind` "bert" (bidirectional, post-norm, first token) or "clip" (causal, pre-norm, end token)."""

    kind: str = "bert"
    length: int = 64
    width: int = 768
    layers: int = 12
    heads: int = 12
    activation: str = "gelu"
    eps: float = 1e-12
    dropout: float = 0.0


@dataclass(frozen=True)
class CrossEncoderConfig:
    """A stack of self-attention, cross-attention, feed-forward layers (post-norm, as BERT)."""

    width: int = 768
    layers: int = 6
    heads: int = 12
    activation: str = "gelu"
    eps: float = 1e-12
    dropout: float = 0.0


@dataclass(frozen=True)
class Size:
    """Towers, fusion and shared embedding width of a size."""

    image: ImageTowerConfig
    text: TextTowerConfig
    fusion: CrossEncoderConfig
    embed: int


_BASE = Size(ImageTowerConfig(), TextTowerConfig(), CrossEncoderConfig(), embed=256)

SIZES: dict[str, Size] = {
    # tests: seconds on one core
    "tiny": Size(
        ImageTowerConfig(side=32, patch=8, width=32, layers=2, heads=2),
        TextTowerConfig(length=32, width=32, layers=2, heads=2),
        CrossEncoderConfig(width=32, layers=1, heads=2),
        embed=16,
    ),
    # `make demo`: minutes on two cores
    "demo": Size(
        ImageTowerConfig(side=64, patch=16, width=128, layers=3, heads=4, pool="max"),
        TextTowerConfig(length=32, width=128, layers=2, heads=4),
        CrossEncoderConfig(width=128, layers=2, heads=4),
        embed=64,
    ),
    "small": Size(
        ImageTowerConfig(width=384, heads=6),
        TextTowerConfig(width=384, layers=6, heads=6),
        CrossEncoderConfig(width=384, layers=4, heads=6),
        embed=256,
    ),
    "base": _BASE,  # ViT-B/16 and BERT-base
    "large": replace(_BASE, image=ImageTowerConfig(patch=14, width=1024, layers=24, heads=16), embed=768),
}


def size(name: str) -> Size:
    """A size by name.

    Raises:
        UserError: if there is no such size.
    """
    if name not in SIZES:
        raise UserError(f"no size called {name!r}; sizes are {', '.join(SIZES)}")
    return SIZES[name]
