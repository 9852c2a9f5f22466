"""Dropout of a locked tower: of the pooled vector, in training alone."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from tuwen.data.batch import Images
from tuwen.data.text import Vocabulary
from tuwen.nn.sizes import SIZES
from tuwen.nn.towers import DualEncoder


def test_a_locked_tower_drops_parts_of_what_is_projected_and_only_while_training():
    tiny = SIZES["tiny"]
    image = replace(tiny.image, locked=True, dropout=0.5)
    vocabulary = Vocabulary(size=20, pad=0, unknown=1, cls=2, sep=3, mask=4)
    encoders = DualEncoder(image, tiny.text, tiny.embed, vocabulary)
    pixels = torch.randn(4, 3, 32, 32)
    pooled = encoders.image.pooled(encoders.image(pixels))
    head = encoders.image_projection
    encoders.eval()
    torch.testing.assert_close(encoders.encode_images(Images(pixels)).pooled, F.normalize(head(pooled), dim=-1))
    encoders.train()
    torch.manual_seed(3)
    got = encoders.encode_images(Images(pixels)).pooled
    torch.manual_seed(3)
    kept = F.dropout(pooled, 0.5, True)
    assert 0.2 < (kept == 0).float().mean() < 0.8
    torch.testing.assert_close(got, F.normalize(head(kept), dim=-1))
