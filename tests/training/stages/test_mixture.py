"""The mixture against its loops and by hand; a pair's loss against loops; noise from losses, with its gate."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tuwen.training.stages.concepts import nearest
from tuwen.training.stages.mixture import LEAST_VARIANCE, TwoNormals, two_normals
from tuwen.training.stages.noise import NoiseConfig, noise_of_losses, pair_losses


def drawn(seed=0, right=700, wrong=300):
    generator = np.random.default_rng(seed)
    return np.concatenate([generator.normal(0.2, 0.05, right), generator.normal(0.8, 0.05, wrong)])


def slow_mixture(values, rounds=60):
    """Expectation maximisation by loops, from the best split found by trying all."""
    low, span = min(values), max(values) - min(values)
    x = [(v - low) / span for v in values]
    ordered, best = sorted(x), None
    for cut in range(1, len(x)):
        parts = ordered[:cut], ordered[cut:]
        within = sum(sum((v - sum(p) / len(p)) ** 2 for v in p) for p in parts)
        best = min(best or (math.inf, 0), (within, cut))
    border = ordered[best[1] - 1]
    share = [float(v > border) for v in x]
    for _ in range(rounds):
        model = []
        for mine in ([1 - s for s in share], share):
            count = sum(mine)
            mean = sum(s * v for s, v in zip(mine, x, strict=True)) / count
            variance = sum(s * (v - mean) ** 2 for s, v in zip(mine, x, strict=True)) / count + LEAST_VARIANCE
            model.append((count / len(x), mean, variance))
        density = [[w * math.exp(-((v - m) ** 2) / (2 * s)) / math.sqrt(s) for w, m, s in model] for v in x]
        share = [b / (a + b) for a, b in density]
    return [(w, m * span + low, s * span**2) for w, m, s in model]


def test_two_clear_normals_are_found():
    """Card, section 11, check 4."""
    for values in (drawn(), -drawn()[::-1] + 1):
        model = two_normals(values)
        heavy, light = (0, 1) if model.weight[0] > 0.5 else (1, 0)
        assert model.weight[heavy] == pytest.approx(0.7, abs=0.01)
        assert model.weight[light] == pytest.approx(0.3, abs=0.01)
        assert model.mean == pytest.approx((0.2, 0.8), abs=0.01)
        noise = model.higher(np.array([0.2, 0.8]))
        assert noise[0] < 0.01
        assert noise[1] > 0.99


@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_the_loops(seed):
    generator = np.random.default_rng(seed)
    values = np.concatenate([generator.normal(1.0, 0.4, 40), generator.normal(3.0, 0.9, 25)])
    fast, slow = two_normals(values), slow_mixture(values.tolist(), rounds=500)
    for k in range(2):
        assert (fast.weight[k], fast.mean[k], fast.variance[k]) == pytest.approx(slow[k], abs=2e-4)


@pytest.mark.parametrize("variance", [(0.04, 0.3), (0.3, 0.04), (0.1, 0.1)])
def test_noise_never_falls_as_losses_rise(variance):
    model = TwoNormals((0.6, 0.4), (1.0, 2.5), variance)
    noise = model.higher(np.linspace(-20, 20, 4001))
    assert bool((np.diff(noise) >= 0).all())
    at = np.array([1.4])
    density = [w * math.exp(-((1.4 - m) ** 2) / (2 * v)) / math.sqrt(v)
               for w, m, v in zip((0.6, 0.4), (1.0, 2.5), variance, strict=True)]  # fmt: skip
    assert model.higher(at)[0] == pytest.approx(density[1] / sum(density))


def test_losses_that_are_all_alike_have_no_mixture():
    assert two_normals(np.full(50, 0.3)) is None
    assert two_normals(np.array([1.0, 2.0])) is None


def noise(losses, languages, gate=2.0):
    lines = []
    work = SimpleNamespace(config=NoiseConfig(gate=gate), say=lines.append)
    return noise_of_losses(work, np.asarray(losses), languages), lines


def test_each_language_has_a_mixture_of_its_own():
    """Losses of one language that are all above the other's are not all noise."""
    losses = np.concatenate([drawn(0), drawn(1) + 5])
    values, lines = noise(losses, ["en"] * 1000 + ["zh"] * 1000)
    for start in (0, 1000):
        assert values[start : start + 700].max() < 0.01
        assert values[start + 700 : start + 1000].min() > 0.99
    assert [line.split(":")[0] for line in lines] == ["noise, en", "noise, zh"]
    mixed, lines = noise(np.concatenate([drawn(0), [0.8] * 9]), ["en"] * 1000 + ["fr"] * 9)
    assert len(lines) == 2
    assert mixed[:700].max() < 0.01


def test_where_the_means_lie_close_nothing_is_noisy_and_it_is_said():
    """Card, section 10: clean losses fall into halves too."""
    for losses in (np.random.default_rng(0).normal(1, 0.2, 4000), np.random.default_rng(1).gamma(3.0, 0.3, 4000)):
        values, lines = noise(losses, ["en"] * 4000)
        assert values.max() == 0, lines
        assert "none counts as noisy" in lines[0]


def test_a_picture_that_cannot_be_read_is_noise():
    values, _ = noise(np.concatenate([drawn(), [np.inf]]), ["en"] * 1001)
    assert values[-1] == 1
    assert values[:700].max() < 0.01


def test_a_pair_s_loss_is_the_loop_and_leaves_its_own_out():
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(5, 5, dtype=torch.float64, generator=generator) for _ in range(2)]
    same = torch.eye(5, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True
    real = torch.tensor([True, True, True, True, False])
    losses = pair_losses(logits[0], logits[1], same, real)
    for i in range(4):
        partners = [j for j in range(5) if i == j or (real[j] and not same[i, j])]
        both = sum(math.log(sum(math.exp(x[i, j]) for j in partners)) - float(x[i, i]) for x in logits)
        assert float(losses[i]) == pytest.approx(both / 2, abs=1e-12)


def test_concepts_are_the_nearest_names_in_order():
    """Card, section 11, check 9."""
    generator = np.random.default_rng(0)
    pictures, names = generator.normal(size=(6, 8)), generator.normal(size=(20, 8))
    pictures[3] = np.nan

    def first(images, texts):
        return SimpleNamespace(i2t=(images.pooled.double() @ texts.pooled.double().T).float())

    work = SimpleNamespace(asked=SimpleNamespace(first=first))
    chosen = nearest(work, pictures.astype(np.float32), SimpleNamespace(pooled=torch.from_numpy(names)), 5)
    assert chosen[3] == []
    for row in (0, 1, 2, 4, 5):
        scores = [float(np.dot(pictures[row], name)) for name in names]
        assert chosen[row] == sorted(range(20), key=lambda k: -scores[k])[:5]
