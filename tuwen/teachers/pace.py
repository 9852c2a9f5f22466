"""How hard the negatives of matching are drawn, paced by what the cross encoder has learnt."""

import torch
from torch import Tensor, nn

from tuwen.errors import UserError

AVERAGE = 0.05  # weight of a step in the average: about twenty steps count
BAND = (0.2, 0.35)  # of the average gain: below, negatives become easier, above, harder; between, they stay
SPEED = 0.1  # of the hardness, for each unit that the average lies beyond the band
BOUND = 0.01  # greatest change a step


class Pace(nn.Module):
    """Hardness h: wrong partners are drawn with probability in proportion to exp(h s), s the contrast's logits.

    h = 0 draws any wrong one, h = 1 as published. An untrained cross encoder cannot tell what the whole scores draw
    from what is right, and never begins; told easy ones first it does. So h starts at 0 and follows an average of the
    matching's gain, 1 - loss / H, H being the entropy of the labels' own shares: 0 where nothing is learnt, 1 where all
    is. Both are buffers, saved with the run, so that it resumes exactly.

    fixed: a hardness that stays; None: self-paced.

    Raises:
        UserError: a hardness beyond 0 to 1.
    """

    hardness: Tensor
    average: Tensor

    def __init__(self, fixed: float | None = None):
        super().__init__()
        if fixed is not None and not 0 <= fixed <= 1:
            raise UserError(f"model.hardness must lie between 0 and 1, got {fixed}")
        self.fixed = fixed
        self.register_buffer("hardness", torch.tensor(0.0 if fixed is None else float(fixed)))
        self.register_buffer("average", torch.tensor(0.0))

    @torch.no_grad()
    def update(self, gains: Tensor) -> None:
        """Once an optimizer step. gains: [B] of the whole global batch, each row its micro-batch's gain."""
        self.average.lerp_(gains.to(self.average).mean(), AVERAGE)
        if self.fixed is None:
            beyond = (self.average - BAND[1]).clamp(min=0) - (BAND[0] - self.average).clamp(min=0)
            self.hardness.add_((SPEED * beyond).clamp(-BOUND, BOUND)).clamp_(0, 1)

    def metrics(self) -> dict[str, Tensor]:
        """What is logged of it."""
        return {"matching_gain": self.average.clone(), "hardness": self.hardness.clone()}
