"""Pictures as a grid of discrete codes: the encoder and decoder of DALL-E's discrete VAE.

Ramesh et al., ICML 2021 (arXiv 2102.12092), section 2.1; the encoder's layout is that of the published weights, as
`FlavaImageCodebook` of transformers holds them: a convolution, four groups of residual blocks with three halvings
between them, logits over the vocabulary. One code stands for 8 x 8 pixels.

Shape legend: B pictures, g codes a side, V codes in the vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tuwen.errors import UserError
from tuwen.run import WEIGHTS

FACTOR = 8  # pixels a code stands for, on a side
_WIDTHS = (1, 2, 4, 8)  # of the groups, in units of the config's width
# beginnings of names under which the encoder lies: a run of ours, FlavaImageCodebook, FlavaForPreTraining
_PREFIXES = ("encoder.", "blocks.", "image_codebook.blocks.")


@dataclass(frozen=True)
class CodesConfig:
    """The tokenizer of pictures: width of the first group, residual blocks a group, size of the vocabulary."""

    width: int = 256
    blocks: int = 2
    vocabulary: int = 8192

    @classmethod
    def sized(cls, name: str) -> "CodesConfig":
        """Small ones for the sizes that train in seconds and minutes; the published one else."""
        return {"tiny": cls(8, 1, 64), "demo": cls(16, 1, 256)}.get(name, cls())


def map_pixels(pixels: Tensor) -> Tensor:
    """[B, 3, H, W] in 0.1..0.9 from uint8, or from float in 0..1 (section A.3: the likelihood's edges are avoided)."""
    x = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
    return 0.8 * x + 0.1


class CodeBlock(nn.Module):
    """x + gain path(x), the path three 3 x 3 convolutions and one 1 x 1 at a quarter of the width."""

    def __init__(self, inputs: int, outputs: int, layers: int):
        super().__init__()
        quarter = outputs // 4
        self.gain = 1 / layers**2
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.path = nn.ModuleList(
            [
                nn.Conv2d(inputs, quarter, 3, padding=1),
                nn.Conv2d(quarter, quarter, 3, padding=1),
                nn.Conv2d(quarter, quarter, 3, padding=1),
                nn.Conv2d(quarter, outputs, 1),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for convolution in self.path:
            y = convolution(F.relu(y))
        return self.skip(x) + self.gain * y


class CodeEncoder(nn.Module):
    """[B, V, g, g] logits from mapped pixels [B, 3, 8g, 8g]."""

    def __init__(self, config: CodesConfig):
        super().__init__()
        widths = [config.width * factor for factor in _WIDTHS]
        layers = len(widths) * config.blocks
        self.first = nn.Conv2d(3, config.width, 7, padding=3)
        self.groups = nn.ModuleList(
            nn.Sequential(*(CodeBlock(width if k else before, width, layers) for k in range(config.blocks)))
            for before, width in zip([config.width, *widths], widths, strict=False)
        )
        self.logits = nn.Conv2d(widths[-1], config.vocabulary, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for number, group in enumerate(self.groups):
            x = group(x)
            if number < len(self.groups) - 1:
                x = F.max_pool2d(x, 2)
        return self.logits(F.relu(x))

    @torch.no_grad()
    def codes(self, pixels: Tensor) -> Tensor:
        """[B, g, g] int64, the most probable code of each place, from pixels [B, 3, 8g, 8g] (uint8, or 0..1)."""
        with torch.autocast(pixels.device.type, enabled=False):  # another precision would be another code
            x = map_pixels(pixels).to(self.first.weight.dtype)
            return self(x).argmax(1)


class CodeDecoder(nn.Module):
    """[B, 3, 8g, 8g] mapped pixels from weights over codes [B, V, g, g], which sum to one at every place."""

    def __init__(self, config: CodesConfig):
        super().__init__()
        widths = [config.width * factor for factor in reversed(_WIDTHS)]
        layers = len(widths) * config.blocks
        self.embed = nn.Conv2d(config.vocabulary, widths[0], 1)
        self.groups = nn.ModuleList(
            nn.Sequential(*(CodeBlock(width if k else before, width, layers) for k in range(config.blocks)))
            for before, width in zip([widths[0], *widths], widths, strict=False)
        )
        self.pixels = nn.Conv2d(widths[-1], 3, 1)

    def forward(self, weights: Tensor) -> Tensor:
        x = self.embed(weights)
        for number, group in enumerate(self.groups):
            x = group(x)
            if number < len(self.groups) - 1:
                x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.pixels(F.relu(x))


@torch.no_grad()
def load_codes(encoder: CodeEncoder, location: str | Path) -> None:
    """Fills an encoder from a run of `tuwen train dvae`, or from published weights in transformers' layout.

    location: a run's folder, a folder with model.safetensors, or a safetensors file.

    Raises:
        UserError: nothing to read there, no such encoder in it, or one of another size.
    """
    path = _file(Path(location))
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give a safetensors file") from None
    prefix = next((p for p in _PREFIXES if any(name.startswith(p) for name in tensors)), None)
    if prefix is None:
        raise UserError(f"{path}: holds no patch tokenizer (no names that start with {', '.join(_PREFIXES)})")
    own = {ours: prefix + (ours if prefix == "encoder." else published_name(ours)) for ours in encoder.state_dict()}
    faults = [f"lacks {theirs}" for theirs in own.values() if theirs not in tensors]
    faults += [
        f"{theirs} is {list(tensors[theirs].shape)}, not {list(encoder.state_dict()[ours].shape)}"
        for ours, theirs in own.items()
        if theirs in tensors and tensors[theirs].shape != encoder.state_dict()[ours].shape
    ]
    if faults:
        raise UserError(f"{path}: a patch tokenizer of another size (model.codes): {'; '.join(faults[:3])}")
    encoder.load_state_dict({ours: tensors[theirs] for ours, theirs in own.items()})


def published_name(ours: str) -> str:
    """The name in transformers' layout, under "blocks.": groups.1.0.path.2.weight is
    group_2.group.block_1.res_path.path.conv_3.weight."""
    parts = ours.split(".")
    if parts[0] == "first":
        return f"input.{parts[1]}"
    if parts[0] == "logits":
        return f"output.conv.{parts[1]}"
    block = f"group_{int(parts[1]) + 1}.group.block_{int(parts[2]) + 1}"
    if parts[3] == "skip":
        return f"{block}.id_path.{parts[4]}"
    return f"{block}.res_path.path.conv_{int(parts[4]) + 1}.{parts[5]}"


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    for name in (WEIGHTS, "model.safetensors"):
        if (path / name).is_file():
            return path / name
    raise UserError(
        f"{path}: no patch tokenizer there; train one with `tuwen train dvae --corpus CORPUS --out {path}`, or give "
        "a folder with model.safetensors"
    )
