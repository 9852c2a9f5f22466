"""The step: accumulation, the finite check, what is handed back."""

import pytest
import torch

from tests.training import toy
from tuwen.data.batch import Batch, Images, Texts
from tuwen.data.text import Vocabulary
from tuwen.errors import UserError
from tuwen.nn.initial import initialise
from tuwen.systems.system import Progress
from tuwen.training import optim
from tuwen.training.step import train_step

VOCABULARY = Vocabulary(size=20, pad=0, unknown=1, cls=2, sep=3, mask=4)


def batch_of(rows: int) -> Batch:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (rows, 3, 8, 8), dtype=torch.uint8, generator=generator)
    ids = torch.randint(5, 20, (rows, 6), generator=generator)
    mask = torch.arange(6) < torch.randint(3, 7, (rows, 1), generator=generator)
    index = torch.arange(rows) + 100
    return Batch(Images(pixels), Texts(ids, mask, torch.zeros(rows, dtype=torch.int64)), index, index, index)


def step(parts: int, step: int = 0, train: dict | None = None, **model):
    """The toy after one step on eight rows in so many micro-batches."""
    config = toy.config(**{f"train__{k}": v for k, v in ({"batch_size": 8} | (train or {})).items()})
    system = toy.Toy(toy.ToyConfig(**model), VOCABULARY)
    initialise(system, 1)
    optimizer = optim.build_optimizer(system, config.train)
    progress = Progress(step, 5, 10, 8)
    schedule = optim.Schedule(10, 0)
    result = train_step(system, system, batch_of(8).split(parts), optimizer, schedule, progress, config.train)
    return system, result


def test_two_halves_are_the_whole_where_rows_do_not_meet():
    whole, one = step(1, contrast=False, dropout=0.0)
    halves, two = step(2, contrast=False, dropout=0.0)
    assert one.loss == pytest.approx(two.loss, rel=1e-6)
    assert one.losses == pytest.approx(two.losses, rel=1e-6)
    assert one.grad_norm == pytest.approx(two.grad_norm, rel=1e-5)
    for (name, a), b in zip(whole.named_parameters(), halves.parameters(), strict=True):
        if a.requires_grad and a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7, msg=name)


def test_what_is_kept_comes_back_whole_and_in_order():
    system, _ = step(4)
    assert system.keeps[0].tolist() == list(range(100, 108))
    assert system.queue.image_id[:8].tolist() == list(range(100, 108))


def test_losses_sum_to_the_loss_and_the_rate_is_the_schedule_s():
    _, result = step(2, step=5)
    assert sum(result.losses.values()) == pytest.approx(result.loss, rel=1e-6)
    assert result.lr == pytest.approx(1e-2 * 0.5)  # half way down the cosine
    assert result.metrics["temperature"] == pytest.approx(0.1)


def test_dropout_is_a_function_of_the_step():
    torch.manual_seed(1)
    first, _ = step(1)
    torch.manual_seed(2)
    second, _ = step(1)
    later, _ = step(1, step=1)
    assert torch.equal(first.image.weight, second.image.weight)
    assert not torch.equal(first.image.weight, later.image.weight)


def test_the_gradient_is_clipped_but_its_norm_told():
    _, free = step(1, train={"clip_norm": None})
    system, clipped = step(1, train={"clip_norm": 1e-3})
    assert clipped.grad_norm == pytest.approx(free.grad_norm)
    assert free.grad_norm > 1e-2
    norm = torch.stack([p.grad.norm() for p in system.parameters() if p.grad is not None]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-2)


def test_a_loss_that_is_not_finite_names_its_samples_and_updates_nothing():
    config = toy.config(train__accumulation=2)
    system = toy.Toy(toy.ToyConfig(poison=106), VOCABULARY)
    initialise(system, 1)
    optimizer = optim.build_optimizer(system, config.train)
    before = {name: p.detach().clone() for name, p in system.named_parameters() if p.requires_grad}
    schedule, progress = optim.Schedule(10, 0), Progress(3, 5, 10, 8)
    with pytest.raises(UserError) as error:
        train_step(system, system, batch_of(8).split(2), optimizer, schedule, progress, config.train)
    assert str(error.value).startswith("step 3: the loss (contrast, pull, teacher) is not finite; nothing was updated")
    assert "Samples (corpus rows): 106." in str(error.value)
    for name, parameter in system.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter, before[name]), name
    assert not optimizer.state
    assert system.keeps == []


def test_a_gradient_that_is_not_finite_stops_as_well():
    config = toy.config()
    system = toy.Toy(toy.ToyConfig(), VOCABULARY)
    initialise(system, 1)
    system.temperature.register_hook(lambda gradient: gradient * float("inf"))
    optimizer = optim.build_optimizer(system, config.train)
    before = system.image.weight.detach().clone()
    schedule, progress = optim.Schedule(10, 0), Progress(0, 5, 10, 8)
    with pytest.raises(UserError, match=r"the gradient \(norm inf\).* 100, 101, .* 107\. "):
        train_step(system, system, [batch_of(8)], optimizer, schedule, progress, config.train)
    assert torch.equal(system.image.weight, before)
