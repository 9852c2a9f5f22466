"""A queue of past features with their identities and ages."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

EMPTY = -1


@dataclass(frozen=True)
class QueuedKeys:
    """Columns to contrast with: images, texts [M, D]; image_id, text_id [M] int64; real [M] bool; age [M] int64."""

    images: Tensor
    texts: Tensor
    image_id: Tensor
    text_id: Tensor
    real: Tensor
    age: Tensor

    def behind(self, images: Tensor, texts: Tensor, image_id: Tensor, text_id: Tensor) -> "QueuedKeys":
        """These keys behind the current batch's (features [N, D], identities [N]), which have age 0."""
        now = image_id.new_zeros(len(image_id))
        return QueuedKeys(
            torch.cat([images, self.images]),
            torch.cat([texts, self.texts]),
            torch.cat([image_id, self.image_id]),
            torch.cat([text_id, self.text_id]),
            torch.cat([now == 0, self.real]),
            torch.cat([now, self.age]),
        )


class FeatureQueue(nn.Module):
    """A ring of the last pairs' picture and text features (MoCo; ALBEF section 4.1).

    Shape legend: M slots in use, N pairs enqueued at once, D width.
    All of it lives in buffers, so it is saved and resumed with the system. Slots not yet filled are masked.
    """

    images: Tensor
    texts: Tensor
    image_id: Tensor
    text_id: Tensor
    stamp: Tensor
    pointer: Tensor
    events: Tensor

    def __init__(self, size: int, width: int):
        super().__init__()
        self.register_buffer("images", torch.zeros(size, width))
        self.register_buffer("texts", torch.zeros(size, width))
        for name in ("image_id", "text_id"):
            self.register_buffer(name, torch.zeros(size, dtype=torch.int64))
        self.register_buffer("stamp", torch.full((size,), EMPTY))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("events", torch.zeros((), dtype=torch.int64))
        self.capacity = size

    def limit(self, pairs: int) -> None:
        """Uses at most so many slots: on a small corpus a full queue would hold most of an epoch, stale and repeated.

        Must be the same all through a run.
        """
        self.capacity = max(0, min(len(self.stamp), pairs))

    @torch.no_grad()
    def enqueue(self, images: Tensor, texts: Tensor, image_id: Tensor, text_id: Tensor) -> None:
        """Writes the pairs (features [N, D], identities [N]) over the oldest; of more than fit, the last are kept."""
        if self.capacity == 0:
            return
        images, texts, image_id, text_id = (x[-self.capacity :] for x in (images, texts, image_id, text_id))
        slots = (self.pointer + torch.arange(len(images), device=images.device)) % self.capacity
        self.images[slots], self.texts[slots] = images.to(self.images.dtype), texts.to(self.texts.dtype)
        self.image_id[slots], self.text_id[slots] = image_id, text_id
        self.stamp[slots] = self.events
        self.pointer.copy_((self.pointer + len(images)) % self.capacity)
        self.events.add_(1)

    def filled(self, used: bool = True) -> Tensor:
        """How many keys `read` gives that are real, a scalar."""
        return (self.stamp[: self.capacity if used else 0] != EMPTY).sum()

    def read(self, used: bool = True) -> QueuedKeys:
        """The slots in use: `real` is False on those never filled, `age` counts enqueue events (the newest has 1).

        used: False gives no keys at all.
        """
        n = self.capacity if used else 0
        real = self.stamp[:n] != EMPTY
        age = torch.where(real, self.events - self.stamp[:n], 0)
        # cloned: the ring is written in place after the step, while a graph may still hold what was read
        images, texts = self.images[:n].clone(), self.texts[:n].clone()
        return QueuedKeys(images, texts, self.image_id[:n].clone(), self.text_id[:n].clone(), real, age)
