"""Views of a picture: what the tower reads, and further ones that a system asks for beside it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from tuwen.data import draws
from tuwen.data.colour import colour_changed
from tuwen.data.fit import Fit, fitted, side_of
from tuwen.data.images import rand_augment, random_resized_crop, resize
from tuwen.errors import UserError

Augment = Literal["crop", "crop+randaugment", "crop+colour", "none"]
CHANGES = {"crop+randaugment", "crop+colour"}  # of what a crop shows


@dataclass(frozen=True)
class View:
    """A further view of a row's picture.

    side: pixels.
    augment: whether what the run changes of its crops (RandAugment, colours) is changed of this view too.
    crop: "same" is the piece that the tower reads, changed by the same operations, so that the two can be compared
        place by place; "own" another piece, changed by other draws; "none" the whole picture.
    scale: least and greatest share of the picture's area in a crop of its own; None: `data.crop_scale`.
    """

    side: int
    augment: bool = True
    crop: Literal["same", "own", "none"] = "same"
    scale: tuple[float, float] | None = None


@dataclass(frozen=True)
class PictureViews:
    """How the pictures of a run are made. fit: of the tower; augment, scale, strength, flip: as in `DataConfig`."""

    fit: int | Fit
    views: Mapping[str, View]
    augment: Augment
    scale: tuple[float, float]
    strength: float = 7.0
    flip: bool = False

    def check(self) -> None:
        """Refuses views that cannot be what a system asks them for, before any work.

        Raises:
            UserError: a view of its own that would equal what the tower reads, or a size that is none.
        """
        for name, view in self.views.items():
            if view.side < 1 or (view.scale is not None and view.crop != "own"):
                raise UserError(f"view {name!r}: {view.side} pixels, crop {view.crop}, scale {view.scale} are no view")
            still = self.augment == "crop" and min(view.scale or self.scale) == 1
            if view.crop == "own" and (self.augment == "none" or still):
                setting = "data.crop_scale: 1, 1" if still else "data.augment: none"
                raise UserError(
                    f"config field {setting} makes the second view {name!r} that this system compares with the first "
                    "the same picture; set data.augment=crop (with data.crop_scale below 1), crop+randaugment or "
                    "crop+colour, or give the loss that compares them no weight"
                )

    def made(self, image: Tensor, key: tuple[int, ...], which: str = "") -> dict[str, Tensor]:
        """{"": what the tower reads, name: view}, each [3, side, side] uint8 of [3, H, W] uint8.

        key: (seed, epoch, entry), of the draws. which: added to their purpose, for further pictures of a row.
        """
        made = {"": self._view(image, "", View(side_of(self.fit)), key, which)}
        for name, view in self.views.items():
            if view.crop == "same" and view.augment and self.augment in CHANGES:
                made[name] = resize(made[""], view.side)  # no operation does the same to another size
            else:
                made[name] = self._view(image, name, view, key, which)
        return made

    def _view(self, image: Tensor, name: str, view: View, key: tuple[int, ...], which: str) -> Tensor:
        generator = draws.generator(*key, ("crop" if view.crop == "same" else name) + which)
        if self.augment == "none" or view.crop == "none":
            picture = fitted(image, _scaled(self.fit, view.side))
        else:
            picture = random_resized_crop(image, view.side, generator, view.scale or self.scale)
            if self.flip and generator.random() < 0.5:
                picture = picture.flip(2)
        if self.augment == "crop+colour" and view.augment:
            return colour_changed(picture, generator)
        varied = self.augment == "crop+randaugment" and view.augment
        return rand_augment(picture, generator, m=self.strength) if varied else picture


def _scaled(fit: int | Fit, side: int) -> int | Fit:
    """The same piece of the picture at another size."""
    if isinstance(fit, int):
        return side
    shorter = None if fit.shorter_side is None else max(side, round(fit.shorter_side * side / fit.side))
    return replace(fit, side=side, shorter_side=shorter)
