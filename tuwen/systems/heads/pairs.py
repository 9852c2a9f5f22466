"""ALBEF's way of two pictures (section 6 of its card): every fusion layer twice, one for each picture.

Shape legend: B rows, L tokens, W width, C classes.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from tuwen.nn.encoded import Encoded
from tuwen.nn.sizes import CrossEncoderConfig
from tuwen.nn.transformer import Stack
from tuwen.systems.system import System


def mlp(width: int, classes: int) -> nn.Sequential:
    """ALBEF's classifier on the first token."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))


class TaughtMLP(nn.Sequential):
    """A classifier whose targets the momentum copies of `taught`, and its own, soften with weight `alpha`."""

    def __init__(self, layers: nn.Sequential, taught: tuple[str, ...], alpha: float):
        super().__init__(*layers)
        self.taught, self.alpha = taught, alpha


class PairClassifier(nn.Module):
    """Text states through pairs of layers: the first of a pair attends to the first picture, the second to the second.

    Both start as the pre-trained fusion layer; within a pair keys and values of the cross-attention are one matrix,
    all else is apart. The momentum copies' share of the targets rises over the first epoch (`ramps`), as in
    pre-training; that of `TaughtMLP`, for entailment, is there from the first step (card, section 6).
    """

    ramps = True

    def __init__(
        self, config: CrossEncoderConfig, memory_width: int, classes: int, taught: tuple[str, ...], alpha: float
    ):
        super().__init__()
        self.first, self.second = (Stack.of(config, "post", memory_width) for _ in range(2))
        for one, other in zip(self.first.blocks, self.second.blocks, strict=True):
            other.cross.key_value = one.cross.key_value
        self.mlp = mlp(config.width, classes)
        self.taught, self.alpha = taught, alpha

    def begin(self, system: System) -> None:
        for stack in (self.first, self.second):
            stack.load_state_dict(system.fusion.stack.state_dict())

    def of(self, system: System, images: Sequence[Encoded], texts: Encoded) -> Tensor:
        """[B, C] logits."""
        x, mask = texts.states["last"], texts.state_mask
        one, other = (image.states["last"] for image in images)
        for first, second in zip(self.first.blocks, self.second.blocks, strict=True):
            x = second(first(x, mask, one), mask, other)
        return self.mlp(x[:, 0])
