"""How a whole picture becomes the square that a tower reads."""

from dataclasses import dataclass

from torch import Tensor

from tuwen.data.images import Resample, resize

WHOLE = (0.0, 0.0, 1.0, 1.0)  # all of a picture, see `Fit.part`


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
        size, top, left = self._cut(*image.shape[1:])
        image = resize(image, size, self.resample)
        return image[:, top : top + self.side, left : left + self.side].contiguous()

    def part(self, height: int, width: int) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) in 0..1 of a whole picture of this size: the part of it that the square shows."""
        if self.shorter_side is None:
            return WHOLE
        (tall, wide), top, left = self._cut(height, width)
        return left / wide, top / tall, (left + self.side) / wide, (top + self.side) / tall

    def _cut(self, height: int, width: int) -> tuple[tuple[int, int], int, int]:
        """The size a picture is brought to, and where the square cut out of it begins, from the top and the left."""
        assert self.shorter_side is not None
        short = min(height, width)
        # the longer side is cut down to whole pixels, as transformers does it
        tall, wide = (int(self.shorter_side * length / short) for length in (height, width))
        return (tall, wide), (tall - self.side) // 2, (wide - self.side) // 2


def fitted(image: Tensor, fit: int | Fit) -> Tensor:
    """[3, side, side] uint8: a picture for a tower that says how, or just resized to a side."""
    return resize(image, fit) if isinstance(fit, int) else fit(image)


def on_whole(places: Tensor, part: Tensor) -> Tensor:
    """Places in 0..1 of a part of a picture, in 0..1 of the whole picture: points [N, 2] or boxes [N, 4], x before y.

    part: [N, 4] as `Fit.part` gives it.
    """
    times = places.shape[-1] // 2
    corner, size = part[..., :2], part[..., 2:] - part[..., :2]
    return corner.repeat(1, times) + places * size.repeat(1, times)


def on_part(places: Tensor, part: Tensor) -> Tensor:
    """The other way round: places of the whole picture in 0..1 of the part, below 0 or above 1 outside of it."""
    times = places.shape[-1] // 2
    corner, size = part[..., :2], part[..., 2:] - part[..., :2]
    return (places - corner.repeat(1, times)) / size.repeat(1, times)


def part_of(fit: int | Fit, image: Tensor) -> tuple[float, float, float, float]:
    """`Fit.part` of a picture [3, H, W]; just resized to a side, all of it is shown."""
    return WHOLE if isinstance(fit, int) else fit.part(*image.shape[1:])


def side_of(fit: int | Fit) -> int:
    return fit if isinstance(fit, int) else fit.side
