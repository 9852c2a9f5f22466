"""The momentum teacher and the queue, written out by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.reference import albef as slow
from tests.systems.common import build, units
from tuwen.systems.system import Progress
from tuwen.teachers.momentum import Momentum
from tuwen.teachers.queue import FeatureQueue


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).double()
        self.head = nn.Linear(3, 1).double()


DECAYS = [(0, 1 / 10), (8, 9 / 18), (1789, 1790 / 1799), (1790, 0.995), (9999, 0.995)]


@pytest.mark.parametrize(("step", "decay"), DECAYS)
def test_teacher_follows_the_student_entry_by_entry(step, decay):
    torch.manual_seed(0)
    student = Student()
    teacher = Momentum(student, ("tower",), 0.995)
    old = [p.clone() for p in teacher.parameters()]
    with torch.no_grad():
        for p in student.parameters():
            p.add_(torch.randn_like(p))
    student.tower[1].running_mean.fill_(7.0)
    now = [p.detach().clone() for p in student.parameters()]
    teacher.update(student, step)
    for mine, was, theirs in zip(teacher.parameters(), old, student.tower.parameters(), strict=True):
        torch.testing.assert_close(mine, slow.momentum(was, theirs.detach(), decay), rtol=0, atol=1e-14)
    assert all(torch.equal(p.detach(), q) for p, q in zip(student.parameters(), now, strict=True))
    assert teacher.tower[1].running_mean.tolist() == [7.0] * 3
    teacher.copy_student(student)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), student.tower.parameters(), strict=True))


def test_teacher_takes_no_gradient_and_stays_without_dropout():
    student = Student()
    student.teacher = Momentum(student, ("tower",))
    student.train()
    assert student.tower.training
    assert not any(m.training for m in student.teacher.modules())
    assert not any(p.requires_grad for p in student.teacher.parameters())
    x = torch.ones(4, 2, dtype=torch.float64)
    assert torch.equal(student.teacher.tower(x), student.teacher.tower(x))
    assert set(student.teacher.state_dict()) == {f"tower.{name}" for name in student.tower.state_dict()}


def test_parts_of_parts_have_copies_of_their_own():
    student = Student()
    student.outer = nn.ModuleDict({"inner": nn.Linear(2, 2).double(), "other": nn.Linear(2, 2)})
    teacher = Momentum(student, ("outer.inner", "head"), 0.995)
    assert set(teacher.state_dict()) == {
        f"{name}.{end}" for name in ("outer.inner", "head") for end in ("weight", "bias")
    }
    was = teacher.outer.inner.weight.clone()
    with torch.no_grad():
        student.outer["inner"].weight.add_(1.0)
    teacher.update(student, 8)
    torch.testing.assert_close(teacher.outer.inner.weight, was + 0.5, rtol=0, atol=1e-14)
    assert torch.equal(teacher.head.weight, student.head.weight)


class SlowQueue:
    """A list of the last `size` pairs with the event at which each came, in slots as a ring fills them."""

    def __init__(self, size: int):
        self.slots: list = [None] * size
        self.next = self.events = 0

    def enqueue(self, pairs: list) -> None:
        for pair in pairs:
            self.slots[self.next] = (pair, self.events)
            self.next = (self.next + 1) % len(self.slots)
        self.events += 1

    def ages(self) -> list[int]:
        return [self.events - slot[1] if slot else 0 for slot in self.slots]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 7), st.lists(st.integers(1, 10), max_size=8), st.integers(0, 2**31))
def test_queue_is_the_slow_ring(size, events, seed):
    queue, slowly, number = FeatureQueue(size, 3).double(), SlowQueue(size), 0
    for count in events:
        x = units(count, 3, seed + number)
        ids = torch.arange(number, number + count)
        queue.enqueue(x, -x, ids, ids + 1000)
        kept = range(count)[-size:]  # more than fit: the last are kept
        slowly.enqueue([(x[k], number + k) for k in kept])
        number += count
    keys = queue.read()
    assert keys.real.tolist() == [slot is not None for slot in slowly.slots]
    assert keys.age.tolist() == slowly.ages()
    for k, slot in enumerate(slowly.slots):
        if slot:
            (x, identity), _ = slot
            assert torch.equal(keys.images[k], x)
            assert torch.equal(keys.texts[k], -x)
            assert (int(keys.image_id[k]), int(keys.text_id[k])) == (identity, identity + 1000)


def test_ages_weigh_by_enqueue_events():
    """R2D2 card, check 7: after n events the oldest block has 0.99^n, the current batch 1; overwriting resets."""
    queue, ids = FeatureQueue(6, 2), torch.arange(2)
    for _ in range(3):
        queue.enqueue(torch.eye(2), torch.eye(2), ids, ids)
    now = queue.read().behind(torch.eye(2), torch.eye(2), ids, ids)
    weights = 0.99**now.age
    assert weights.tolist() == pytest.approx([1, 1, 0.99**3, 0.99**3, 0.99**2, 0.99**2, 0.99, 0.99])
    queue.enqueue(torch.eye(2), torch.eye(2), ids, ids)
    assert queue.read().age.tolist() == [1, 1, 3, 3, 2, 2]


def test_pointer_counts_what_was_written_round_the_ring():
    """ALBEF card, check 4: after k steps the pointer stands at k B mod M."""
    queue, ids = FeatureQueue(8, 2), torch.arange(3)
    for step in range(1, 6):
        queue.enqueue(torch.ones(3, 2), torch.ones(3, 2), ids, ids)
        assert int(queue.pointer) == step * 3 % 8


def test_a_limited_queue_uses_its_first_slots_alone():
    queue, ids = FeatureQueue(10, 1), torch.arange(3)
    queue.limit(4)
    for k in range(3):
        x = torch.full((3, 1), float(k))
        queue.enqueue(x, x, ids, ids)
    assert queue.read().images[:, 0].tolist() == [2, 1, 2, 2]  # slots 0 1 2, then 3 0 1, then 2 3 0
    assert queue.read().age.tolist() == [1, 2, 1, 1]
    queue.limit(0)
    assert len(queue.read().real) == 0
    queue.enqueue(torch.ones(3, 1), torch.ones(3, 1), ids, ids)


def test_what_was_read_does_not_change_when_the_ring_moves_on():
    queue, ids = FeatureQueue(3, 2), torch.arange(3)
    queue.enqueue(torch.ones(3, 2), torch.ones(3, 2), ids, ids)
    before = queue.read()
    queue.enqueue(torch.zeros(3, 2), torch.zeros(3, 2), ids + 5, ids + 5)
    assert before.images.min() == 1
    assert before.image_id.tolist() == [0, 1, 2]
    assert before.age.tolist() == [1, 1, 1]


def test_queue_is_saved_and_goes_on_where_it_stood():
    a, b, ids = FeatureQueue(4, 2), FeatureQueue(4, 2), torch.arange(3)
    a.enqueue(torch.ones(3, 2), torch.ones(3, 2), ids, ids)
    b.load_state_dict(a.state_dict())
    for queue in (a, b):
        queue.enqueue(torch.zeros(3, 2), torch.zeros(3, 2), ids + 5, ids + 5)
    for one, other in zip(vars(a.read()).values(), vars(b.read()).values(), strict=True):
        assert torch.equal(one, other)


def test_the_published_momentum_and_queue_can_be_had():
    """No rise from 0.1, and no bound by the length of the epoch."""
    for rises, momentum in ((True, 4 / 13), (False, 0.995)):
        system = build("albef", momentum_rises=rises, queue=8, queue_share=1.0)
        old = system.teacher.encoders.image.positions.clone()
        with torch.no_grad():
            system.encoders.image.positions.add_(1.0)
        system.before_step(Progress(3, 1, 10, 6))
        moved = (system.teacher.encoders.image.positions - old).mean()
        assert float(moved) == pytest.approx(1 - momentum, abs=1e-4)
        assert system.queue.capacity == 6  # an epoch's pairs
    system = build("albef", queue=8)
    system.before_step(Progress(3, 1, 10, 6))
    assert system.queue.capacity == 1  # a quarter of them
