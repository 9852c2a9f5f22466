"""Named sizes of the parts. A system's `Config.sized` takes its towers from here, so that one size means
the same towers in every system."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

from tuwen.data.fit import Fit
from tuwen.data.images import Resample
from tuwen.errors import UserError, quoted

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
Projection = Literal["linear", "unbiased", "none"]
C = TypeVar("C")

# least and most of numbers that size a part: far above all that is published, far below what no machine holds
_BOUNDS = {
    "side": (1, 2**14),
    "patch": (1, 2**14),
    "length": (1, 2**17),
    "width": (1, 2**17),
    "embed": (1, 2**17),
    "nested": (1, 2**17),
    "hidden": (1, 2**20),
    "transform": (1, 2**17),
    "heads": (1, 2**12),
    "layers": (0, 2**12),
    "frame_layers": (0, 2**12),
    "registers": (0, 2**12),
    "shorter_side": (1, 2**14),
    "vocabulary": (1, 2**20),
    "dropout": (0, 1),
}
_COUNT = (1, 2**24)  # of every other whole number: queue, tokens, regions, ...


def check_sizes(config: Any, prefix: str = "") -> None:
    """Checks all whole numbers of a config, those of its parts included, before anything is made of them.

    Raises:
        ValueError: for a number that sizes a part and could not, or a width that its heads do not divide.
    """
    if getattr(config, "backbone", None) is not None:
        return  # whose own settings size it
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            check_sizes(value, f"{prefix}{field.name}.")
        for number in value if isinstance(value, tuple) else (value,):
            if type(number) is int or (field.name in _BOUNDS and number is not None):
                least, most = _BOUNDS.get(field.name, _COUNT)
                if not least <= number <= most:
                    raise ValueError(
                        f"{prefix}{field.name} must lie between {least} and {most}, got {quoted(number, 40)}"
                    )
    width, heads = getattr(config, "width", None), getattr(config, "heads", None)
    if width and heads and width % heads:
        raise ValueError(f"{prefix}width {width} does not divide by {heads} heads")


@dataclass(frozen=True)
class ImageTowerConfig:
    """A ViT, or any other backbone: `side` and `patch` in pixels.

    pool: "class" (a class token), "mean" or "max" over patches ("max" learns small things soonest from scratch), or
        "map" (SigLIP's attention of a learned query over the tokens).
    hidden: width inside the feed-forward layers; None: four times the width.
    registers: learned tokens after the class token (DeiT's distillation token is one).
    pooler: a dense layer with tanh after pooling (BERT's and ViT's pooler).
    projection: into the shared space, "linear", "unbiased" (CLIP's), or "none" where the tower's width is the space's.
    shorter_side, resample, mean, std: how a picture is made ready, see `Fit`; mean and std of values in 0..1.
    backbone: settings of a transformers model (its config.json) or of a package's, in place of the ViT.
    locked: never trained, always in evaluation mode (LiT, Zhai et al. 2022).
    dropout: inside the ViT's blocks; of a locked tower, of the pooled vector that is projected.
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
    hidden: int | None = None
    registers: int = 0
    patch_bias: bool = True
    pooler: bool = False
    projection: Projection = "linear"
    shorter_side: int | None = None
    resample: Resample = "bicubic"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    backbone: Mapping[str, Any] | None = None
    locked: bool = False

    def __post_init__(self):
        check_sizes(self)
        if self.backbone is None and self.patch > self.side:
            raise ValueError(f"a side of {self.side} pixels has no patch of {self.patch}")

    @property
    def fit(self) -> Fit:
        """How a picture is brought to the tower's side."""
        return Fit(self.side, self.shorter_side, self.resample)


@dataclass(frozen=True)
class TextTowerConfig:
    """A text encoder, by `kind`.

    kind: "bert" (bidirectional, post-norm, first token), "clip" (causal, pre-norm, end token), "siglip" (bidirectional,
        pre-norm, always padded to `length` with padding read as text, last token), "flava" (bidirectional, pre-norm, a
        norm on the embeddings, first token).
    pool: "first", "last" (real token) or "mean" (over real tokens); "auto": as the kind says.
    hidden, pooler, projection, backbone, locked: as in `ImageTowerConfig`.
    transform: width after a norm and a linear layer on the pooled state (AltCLIP); None: no such layers.
    """

    kind: str = "bert"
    length: int = 64
    width: int = 768
    layers: int = 12
    heads: int = 12
    activation: str = "gelu"
    eps: float = 1e-12
    dropout: float = 0.0
    pool: Literal["auto", "first", "last", "mean"] = "auto"
    hidden: int | None = None
    pooler: bool = False
    transform: int | None = None
    projection: Projection = "linear"
    backbone: Mapping[str, Any] | None = None
    locked: bool = False

    def __post_init__(self):
        check_sizes(self)


@dataclass(frozen=True)
class CrossEncoderConfig:
    """A stack of self-attention, cross-attention, feed-forward layers (post-norm, as BERT)."""

    width: int = 768
    layers: int = 6
    heads: int = 12
    activation: str = "gelu"
    eps: float = 1e-12
    dropout: float = 0.0
    hidden: int | None = None

    def __post_init__(self):
        check_sizes(self)


@dataclass(frozen=True)
class Size:
    """Towers, fusion and shared embedding width of a size; embed None: what the system's own paper has."""

    image: ImageTowerConfig
    text: TextTowerConfig
    fusion: CrossEncoderConfig
    embed: int | None

    def fill(self, config: type[C], **others: Any) -> C:
        """A system's config of this size: with `image`, `text`, `fusion` and `embed` as far as it has them."""
        own = {field.name for field in fields(config)}  # type: ignore[arg-type]
        sizes = {name: value for name, value in vars(self).items() if name in own and value is not None}
        return config(**sizes | others)


_BASE = Size(ImageTowerConfig(), TextTowerConfig(), CrossEncoderConfig(), embed=None)


def _clip(patch: int, embed: int, length: int = 77, **image: Any) -> Size:
    """CLIP's towers as published (Radford et al. 2021, appendix F): its text tower is as wide as its space."""
    blocks: dict[str, Any] = {"activation": "quick_gelu", "eps": 1e-5, "projection": "unbiased"}
    tower = ImageTowerConfig(patch=patch, pre_norm=True, patch_bias=False, shorter_side=224, **blocks, **image)
    text = TextTowerConfig("clip", length, embed, heads=embed // 64, **blocks)
    return Size(tower, text, CrossEncoderConfig(embed, heads=embed // 64), embed)


def _chinese_clip(layers: int = 12, **image: Any) -> Size:
    """Chinese-CLIP's towers (Yang et al. 2022): CLIP's of a squashed picture, and a BERT of 52 tokens at most."""
    size = _clip(16, 512, **image)
    width = size.image.width if layers < 12 else 768
    text = TextTowerConfig(length=52, width=width, layers=layers, heads=width // 64, projection="unbiased")
    fusion = CrossEncoderConfig(width, heads=width // 64)
    return Size(replace(size.image, shorter_side=None), text, fusion, size.embed)


_SMALL: dict[str, Any] = {"width": 384, "heads": 6}
_LARGE: dict[str, Any] = {"width": 1024, "layers": 24, "heads": 16}
# Wukong's: CLIP's, the picture's locked, 32 words, one narrower space for all tokens (card, section 3)
_WUKONG_B, _WUKONG_L = _clip(32, 512, 32, locked=True), _clip(14, 768, 32, locked=True, **_LARGE)

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
    "large": replace(_BASE, image=ImageTowerConfig(patch=14, **_LARGE), embed=768),
    # published ones, exact
    "clip-b32": _clip(32, 512),
    "clip-b16": _clip(16, 512),
    "clip-l14": _clip(14, 768, **_LARGE),
    "chinese-clip-b16": _chinese_clip(),
    # of their architecture, so that what is trained goes out as theirs, and as large as "small"
    "clip-small": replace(_clip(16, 384, **_SMALL), embed=256),
    "chinese-clip-small": replace(_chinese_clip(6, **_SMALL), embed=256),
    "wukong-b32": replace(_WUKONG_B, embed=256),
    "wukong-l14": replace(_WUKONG_L, embed=256),
}


def size(name: str) -> Size:
    """A size by name.

    Raises:
        UserError: if there is no such size.
    """
    if not isinstance(name, str) or name not in SIZES:
        raise UserError(f"no size called {quoted(name, 40)}; sizes are {', '.join(SIZES)}")
    return SIZES[name]
