"""Measures of pictures and texts, against slow versions and values worked out by hand."""

import itertools

import numpy as np
import pytest
import torch

from tuwen.data.curate.quality import (
    LanguageCheck,
    flatness,
    is_grey,
    near_hashes,
    near_texts,
    perceptual_hash,
    shingles,
)


def noise(seed: int, height: int = 90, width: int = 130) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def scene(seed: int) -> torch.Tensor:
    """Large blocks of colour, as photographs have."""
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 255
    return torch.nn.functional.interpolate(coarse, (120, 160), mode="bicubic").clamp(0, 255)[0].to(torch.uint8)


def test_grey():
    grey = noise(0)[:1].expand(3, -1, -1)
    tinted = grey.clone()
    tinted[0] = (tinted[0].int() + 6).clamp(max=255).to(torch.uint8)
    spotted = grey.clone()
    spotted[:, :9, :13] = torch.tensor([250, 10, 10], dtype=torch.uint8)[:, None, None]
    assert (is_grey(grey), is_grey(tinted), is_grey(spotted), is_grey(noise(0))) == (True, True, False, False)


def test_flatness():
    blank = torch.full((3, 100, 100), 200, dtype=torch.uint8)
    assert flatness(blank) == 1.0
    quarter = blank.clone()
    quarter[:, :50, :50] = 10
    assert flatness(quarter) == pytest.approx(0.75, abs=0.02)
    assert flatness(noise(1)) < 0.1


def test_hash_stays_where_the_picture_does():
    first = perceptual_hash(scene(0))
    brighter = (scene(0).float() * 1.1).clamp(max=255).to(torch.uint8)
    smaller = torch.nn.functional.interpolate(scene(0)[None], (60, 80), mode="bilinear")[0].to(torch.uint8)
    for changed in (brighter, smaller):
        assert (first ^ perceptual_hash(changed)).bit_count() <= 4
    assert (first ^ perceptual_hash(scene(1))).bit_count() > 12


@pytest.mark.parametrize("distance", [0, 1, 4, 10])
def test_near_hashes_against_all_pairs(distance):
    draw = np.random.default_rng(distance)
    hashes = [int(value) for value in draw.integers(0, 2**64, 60, dtype=np.uint64)]
    for value in hashes[:30]:
        flipped = draw.permutation(64)[: int(draw.integers(0, 13))]
        hashes.append(value ^ sum(1 << int(bit) for bit in flipped))
    slow = [(i, j) for i, j in itertools.combinations(range(90), 2) if (hashes[i] ^ hashes[j]).bit_count() <= distance]
    assert list(near_hashes(hashes, distance)) == slow
    assert len(slow) >= distance / 2
    assert list(near_hashes([], distance)) == []


def test_shingles():
    assert shingles("AB  cd") == {"abc", "bcd"}
    assert shingles("猫") == {"猫"}
    assert shingles("ＡＢＣ") == {"abc"}


def test_near_texts_against_all_pairs():
    draw = np.random.default_rng(0)
    words = [f"word{n}" for n in range(50)]
    texts = [" ".join(draw.choice(words, 12)) for _ in range(80)]
    texts += [" ".join([*text.split()[:-1], "changed"]) for text in texts[:40]]
    texts += ["红色沙发上的一只白色的猫在看着窗外的雪山", "红色沙发上的一只白色的猫在看着窗外的雪", "红色沙发上的黑猫"]

    def likeness(i, j):
        a, b = shingles(texts[i]), shingles(texts[j])
        return len(a & b) / len(a | b)

    slow = {pair for pair in itertools.combinations(range(len(texts)), 2) if likeness(*pair) >= 0.8}
    found = list(near_texts(texts, 0.8))
    assert set(found) <= slow
    assert len(found) == len(set(found)) >= 0.97 * len(slow)
    assert (120, 121) in found
    assert all(122 not in pair for pair in found)


def test_languages():
    check = LanguageCheck(("en", "zh", "und"))
    assert check.doubt("A child in a pink dress is climbing up the stairs", "en", 0.05) is None
    assert check.doubt("Ein schwarzer Hund und ein gefleckter Hund kämpfen", "en", 0.05) == "de"
    assert check.doubt("一个穿粉色裙子的小孩在爬楼梯", "en", 0.05) == "zh"
    assert check.doubt("一个穿粉色裙子的小孩在爬楼梯", "zh-Hans", 0.05) is None
    assert check.doubt("Hund", "en", 0.05) is None
    assert check.doubt("Ein schwarzer Hund und ein gefleckter Hund kämpfen", "und", 0.05) is None
