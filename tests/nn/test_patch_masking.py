"""Block-wise masks against a loop on the same draws, and their bounds; random masks."""

import math

import torch

from tuwen.nn.patch_masking import ATTEMPTS, DRAWS, TRIES, block_size, hide_blocks, hide_exactly, hide_random


def slow(draws: list[float], height: int, width: int, target: int, least: int) -> set[tuple[int, int]]:
    """One picture's mask, cell by cell (BEiT, algorithm 1)."""
    hidden: set[tuple[int, int]] = set()
    failures = 0
    for k in range(ATTEMPTS):
        missing = target - len(hidden)
        if missing == 0 or failures == TRIES:
            break
        a, b, c, d = draws[4 * k : 4 * k + 4]
        area = least + a * (missing - least)
        ratio = math.exp(math.log(0.3) + b * (math.log(1 / 0.3) - math.log(0.3)))
        tall, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        failures += 1
        if tall < height and wide < width:
            top, left = int(c * (height - tall + 1)), int(d * (width - wide + 1))
            block = {(i, j) for i in range(top, top + tall) for j in range(left, left + wide)}
            if 0 < len(block - hidden) <= missing:
                hidden |= block
                failures = 0
    return hidden


def test_masks_are_the_loops_and_stay_in_bounds():
    """FLAVA's card, check 6: 14 x 14, between 1 and 75 hidden."""
    for (height, width), target, least in (((14, 14), 75, 16), ((4, 4), 6, 1), ((6, 9), 20, 4)):
        draws = torch.rand(200, DRAWS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        masks = hide_blocks(draws, (height, width), target, least)
        for mask, row in zip(masks, draws.tolist(), strict=True):
            assert {(i, j) for i, j in mask.nonzero().tolist()} == slow(row, height, width, target, least)
        counts = masks.flatten(1).sum(1)
        assert int(counts.min()) >= 1
        assert int(counts.max()) <= target
        assert float(counts.float().mean()) > 0.85 * target
        alone = hide_blocks(draws[7:8], (height, width), target, least)
        assert torch.equal(alone[0], masks[7])


def test_sizes_keep_the_published_proportion():
    assert block_size(196) == (75, 16)
    assert block_size(16) == (6, 1)


def test_random_masks_keep_the_least_draws():
    draws = torch.tensor([[0.5, 0.1, 0.9, 0.3], [0.2, 0.2, 0.1, 0.8]])
    kept, hidden = hide_random(draws, 0.5)
    assert kept.tolist() == [[1, 3], [2, 0]]
    assert hidden.tolist() == [[True, False, True, False], [False, True, False, True]]


def test_exact_masks_are_blocks_that_grew():
    """VLMAE: as many in every picture, the blocks among them; what was added lies beside them first."""
    height, width, count = 14, 14, 98
    draws = torch.rand(60, DRAWS + 196, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    kept, hidden = hide_exactly(draws, (height, width), count)
    blocks = hide_blocks(draws[:, :DRAWS], (height, width), count, 16)
    for row in range(60):
        mask, block = hidden[row].view(height, width), blocks[row]
        assert int(mask.sum()) == count
        assert not (block & ~mask).any()
        assert kept[row].tolist() == [place for place in range(196) if not mask.flatten()[place]]
        cells = {(i, j) for i, j in block.nonzero().tolist()}
        border = {(i + a, j + b) for i, j in cells for a in (-1, 0, 1) for b in (-1, 0, 1)} - cells
        border = {(i, j) for i, j in border if 0 <= i < height and 0 <= j < width}
        added = {(i, j) for i, j in mask.nonzero().tolist()} - cells
        assert added <= border or border <= added
        if added and added < border:
            rank = draws[row, DRAWS:].view(height, width)
            assert min(rank[place] for place in added) >= max(rank[place] for place in border - added)
    alone = hide_exactly(draws[7:8], (height, width), count)
    assert torch.equal(alone[1][0], hidden[7])


def test_exact_masks_at_random_hide_the_greatest_draws():
    draws = torch.cat([torch.zeros(1, DRAWS), torch.tensor([[0.5, 0.1, 0.9, 0.3]])], 1)
    kept, hidden = hide_exactly(draws, (2, 2), 2, blocks=False)
    assert kept.tolist() == [[1, 3]]
    assert hidden.tolist() == [[True, False, True, False]]
    assert hide_exactly(draws, (2, 2), 0)[0].tolist() == [[0, 1, 2, 3]]
