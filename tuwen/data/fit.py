"""How a whole picture becomes the square that a tower reads."""

from dataclasses import dataclass

from torch import Tensor

from tuwen.data.images import Resample, resize


@dataclass(frozen=True)
class Fit:
    """How a whole picture becomes a square of `side` pixels, as published weights were given theirs.

    shorter_side: pixels that the shorter side is brought to, before the middle square is cut out; None: both sides are
        brought to `side`, and the aspect is not kept.
    resample: how pixels are interpolated.
    """

    side: int
    shorter_side: int | None = None
    resample: Resample = "bicubic"

    def __post_init__(self):
        if self.shorter_side is not None and self.shorter_side < self.side:
            raise ValueError(f"shorter_side {self.shorter_side} is less than side {self.side}, which is cut out of it")

    def __str__(self) -> str:
        if self.shorter_side is None:
            return f"squashed to {self.side} x {self.side} ({self.resample})"
        return (
            f"brought to a shorter side of {self.shorter_side} and cut to {self.side} x {self.side} ({self.resample})"
        )

    def __call__(self, image: Tensor) -> Tensor:
        """[3, side, side] uint8 of [3, H, W] uint8."""
        if self.shorter_side is None:
            return resize(image, self.side, self.resample)
        height, width = image.shape[1:]
        short = min(height, width)
        # the longer side is cut down to whole pixels, as transformers does it
        size = tuple(int(self.shorter_side * length / short) for length in (height, width))
        image = resize(image, size, self.resample)
        top, left = ((length - self.side) // 2 for length in image.shape[1:])
        return image[:, top : top + self.side, left : left + self.side].contiguous()


def fitted(image: Tensor, fit: int | Fit) -> Tensor:
    """[3, side, side] uint8: a picture for a tower that says how, or just resized to a side."""
    return resize(image, fit) if isinstance(fit, int) else fit(image)


def side_of(fit: int | Fit) -> int:
    return fit if isinstance(fit, int) else fit.side
