"""A few learned tokens in place of many: Wukong's token-reduction layer (a variant of TokenLearner)."""

from torch import Tensor, nn


class Mix(nn.Conv2d):
    """A linear map of every place by itself, in groups, without bias; its start is Kaiming's by outputs, as in the
    official code (mmcv's `kaiming_init`): from smaller weights all new tokens would be the mean of all places."""

    gain = 2**0.5

    def __init__(self, width: int, out: int, groups: int = 1):
        super().__init__(width, out, 1, groups=groups, bias=False)


class TokenReduction(nn.Module):
    """Each of `tokens` new tokens is a weighted mean of all places, by weights it learns to read off them.

    A = softmax over places of W2 W1 LN(x), z = A Wf x, with W1 and Wf in `groups` groups, W2 to `tokens`, no biases and
    nothing between W1 and W2 (Wukong card, section 3, from the official code). x are projected
    tokens before they are scaled to length 1. The order of places changes nothing.
    """

    def __init__(self, width: int, tokens: int, groups: int = 8):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attend = Mix(width, width, groups)
        self.choose = Mix(width, tokens)
        self.values = Mix(width, width, groups)

    def forward(self, x: Tensor) -> Tensor:
        """[B, K, D] from x [B, N, D]."""
        return self.weights(x) @ self.values(x.mT[..., None])[..., 0].mT

    def weights(self, x: Tensor) -> Tensor:
        """[B, K, N]: what share each place has in each token; rows sum to 1."""
        chosen = self.choose(self.attend(self.norm(x).mT[..., None]))[..., 0]
        return chosen.softmax(-1)
