"""Two real processes against one: the gradient of a whole batch must not know how it was shared out."""

import importlib
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from tests import children  # noqa: F401 (its server has torch loaded)
from tests.systems.common import PROGRESS, build, example, random, shaken, units
from tuwen.data.batch import same_pair
from tuwen.data.gather import first_row, gather, gather_padded
from tuwen.objectives.contrastive import contrastive
from tuwen.objectives.gather import global_contrast
from tuwen.objectives.matching import hard_negatives

IMAGE_ID, TEXT_ID = torch.tensor([1, 2, 1, 3]), torch.tensor([7, 8, 9, 8])
SYSTEMS = ("clip", "albef", "r2d2", "prd2", "wukong", "tokenflow", "grit_vlp", "vlmae")
TEMPERATURE = torch.tensor(0.2, dtype=torch.float64)


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, list]:
    """What each piece of work gave in each of two processes; they are started once, which takes seconds."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(enter, (str(folder), port), nprocs=2, start_method="forkserver")
    both = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    return {name: [part[name] for part in both] for name in both[0]}


def enter(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = {"contrast": contrast_work(rank), "gather": gather_work(rank), "negatives": negatives_work(rank)}
    found |= {name: system_work(name, rank) for name in SYSTEMS}
    torch.save(found, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def mine(x: torch.Tensor, rank: int) -> torch.Tensor:
    return x[2 * rank : 2 * rank + 2]


def local_contrast(u: torch.Tensor, t: torch.Tensor, rank: int) -> torch.Tensor:
    ids = mine(IMAGE_ID, rank), mine(TEXT_ID, rank)
    same = same_pair(*ids, *(gather(x) for x in ids))
    return global_contrast(u, t, same, TEMPERATURE)


def contrast_work(rank: int) -> dict:
    u, t = (mine(units(4, 6, k), rank).clone().requires_grad_() for k in (1, 2))
    loss = local_contrast(u, t, rank)
    loss.backward()
    alone_u, alone_t = u.detach().clone().requires_grad_(), gather(t.detach()).requires_grad_()
    same = same_pair(mine(IMAGE_ID, rank), mine(TEXT_ID, rank), IMAGE_ID, TEXT_ID)
    contrastive(alone_u, mine(alone_t, rank), gather(u.detach()), alone_t, same, TEMPERATURE).backward()
    remote = mine(alone_t.grad, 1 - rank)
    return {"loss": loss.detach(), "u": u.grad, "t": t.grad, "remote": remote, "first": torch.tensor(first_row(2))}


def test_contrast_over_two_processes_is_contrast_over_the_whole_batch(parts):
    """R2D2 card, check 2: remote texts have a gradient, and all gradients are the big batch's, to 1e-6."""
    parts = parts["contrast"]
    u, t = units(4, 6, 1).requires_grad_(), units(4, 6, 2).requires_grad_()
    loss = contrastive(u, t, u, t, same_pair(IMAGE_ID, TEXT_ID, IMAGE_ID, TEXT_ID), TEMPERATURE)
    loss.backward()
    assert float(sum(part["loss"] for part in parts) / 2) == pytest.approx(float(loss.detach()), abs=1e-12)
    for name, whole in (("u", u.grad), ("t", t.grad)):
        shared = torch.cat([part[name] for part in parts]) / 2  # data-parallel training averages over processes
        torch.testing.assert_close(shared, whole, rtol=0, atol=1e-12)
    assert all(part["remote"].abs().max() > 1e-3 for part in parts)
    assert [int(part["first"]) for part in parts] == [0, 2]


def gather_work(rank: int) -> dict:
    x = mine(random(4, 3, seed=1), rank).clone().requires_grad_()
    y = mine(random(4, 3, seed=2), rank).clone().requires_grad_()
    ((gather(x) + gather(y)) * random(4, 3, seed=3) * (rank + 1)).sum().backward()
    states = random(2, 3 + 2 * rank, 2, seed=rank).requires_grad_()
    everyone = gather_padded(states)
    (everyone * random(4, 5, 2, seed=9)).sum().backward()
    flags = gather(torch.tensor([rank == 0, True]))
    return {
        "x": x.grad,
        "y": y.grad,
        "rows": gather(x).detach(),
        "padded": everyone.detach(),
        "states": states.grad,
        "flags": flags,
        "ids": gather(torch.tensor([2**62 + rank, -rank])),
    }


def test_gather_gives_rows_in_rank_order_and_every_process_its_gradient(parts):
    """Two gathered tensors share one incoming gradient: summing it over processes must not be done in place."""
    weights = random(4, 3, seed=3)
    for rank, part in enumerate(parts["gather"]):
        torch.testing.assert_close(part["rows"], random(4, 3, seed=1), rtol=0, atol=0)
        torch.testing.assert_close(part["x"], 3 * mine(weights, rank))  # 1 from process 0, 2 from process 1
        torch.testing.assert_close(part["y"], 3 * mine(weights, rank))
        assert part["flags"].tolist() == [True, True, False, True]
        assert part["ids"].tolist() == [2**62, 0, 2**62 + 1, -1]
        assert part["padded"][:2, 3:].abs().max() == 0
        torch.testing.assert_close(part["padded"][:2, :3], random(2, 3, 2, seed=0))
        torch.testing.assert_close(part["padded"][2:], random(2, 5, 2, seed=1))
        want = 2 * mine(random(4, 5, 2, seed=9), rank)[:, : 3 + 2 * rank]
        torch.testing.assert_close(part["states"], want)


def negatives_work(rank: int) -> dict:
    """Rows of process `rank` draw from the gathered texts; the same row is asked very often."""
    u, t = mine(units(4, 6, 1), rank), gather(mine(units(4, 6, 2), rank))
    same = same_pair(
        mine(IMAGE_ID, rank), mine(TEXT_ID, rank), gather(mine(IMAGE_ID, rank)), gather(mine(TEXT_ID, rank))
    )
    draws = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    scores = (u @ t.T / TEMPERATURE)[0].expand(20_000, 4)
    chosen, _ = hard_negatives(scores, same[0].expand(20_000, 4), draws)
    return {"share": torch.bincount(chosen, minlength=4) / 20_000}


def test_negatives_come_from_the_other_process_at_the_right_rate(parts):
    """R2D2 card, check 3."""
    scores = (units(4, 6, 1) @ units(4, 6, 2).T / TEMPERATURE)[[0, 2]]
    for rank, part in enumerate(parts["negatives"]):
        wrong = [1, 3]  # rows 0 and 2 show one picture: neither may be the other's negative
        want = scores[rank][wrong].softmax(0).float()
        torch.testing.assert_close(part["share"][wrong], want, rtol=0, atol=1e-3)
        assert part["share"][[0, 2]].abs().max() == 0


class Terms(torch.nn.Module):
    """The sum of a system's terms in their own precision."""

    def __init__(self, system):
        super().__init__()
        self.system = system

    def forward(self, batch):
        return sum(self.system(batch, PROGRESS).terms.values())


def half(rank: int):
    return example().select(torch.arange(3 * rank, 3 * rank + 3))


def system_work(name: str, rank: int) -> dict:
    """A system on its half of the batch, as data-parallel training wraps it."""
    system = shaken(build(name, queue=8, mask_share=0.4))
    wrapped = DistributedDataParallel(Terms(system), broadcast_buffers=False, find_unused_parameters=True)
    total = wrapped(half(rank))
    total.backward()
    return {"total": total.detach()} | {n: p.grad for n, p in system.named_parameters() if p.grad is not None}


def in_two_threads(system, module, monkeypatch) -> list[torch.Tensor]:
    """What each of two processes computes, in one: gathering is plain concatenation of what both threads hold."""
    held, met, place = [None, None], threading.Barrier(2), threading.local()

    def plain_gather(x):
        held[place.rank] = x
        met.wait()
        longest = max(part.shape[1] for part in held) if x.dim() > 1 else None
        parts = [part if longest is None else pad(part, longest) for part in held]
        met.wait()
        return torch.cat(parts)

    def work(rank):
        place.rank = rank
        return Terms(system)(half(rank))

    rooms = [importlib.import_module(name) for name in ("tuwen.objectives.gather", "tuwen.data.batch")]
    for where in (module, *rooms):
        for name in ("gather", "gather_padded"):
            if hasattr(where, name):
                monkeypatch.setattr(where, name, plain_gather)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, range(2)))


def pad(x: torch.Tensor, longest: int) -> torch.Tensor:
    return torch.cat([x, x.new_zeros(x.shape[0], longest - x.shape[1], *x.shape[2:])], 1)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_in_two_processes_has_the_gradient_of_its_mean_loss(parts, monkeypatch, name):
    """Columns and negatives cross processes, and so do their gradients."""
    system = shaken(build(name, queue=8, mask_share=0.4))
    totals = in_two_threads(system, importlib.import_module(f"tuwen.systems.{name}"), monkeypatch)
    (sum(totals) / 2).backward()
    for part, total in zip(parts[name], totals, strict=True):
        assert float(part["total"]) == pytest.approx(float(total.detach()), abs=1e-9)
        for parameter_name, parameter in system.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(part[parameter_name], parameter.grad, rtol=0, atol=1e-9)


def test_clip_in_two_processes_is_clip_on_the_whole_batch(monkeypatch):
    """With whole columns on both sides, the mean of the processes' losses is the one-process loss."""
    system = shaken(build("clip"))
    totals = in_two_threads(system, importlib.import_module("tuwen.systems.clip"), monkeypatch)
    monkeypatch.undo()
    whole = Terms(system)(example())
    assert float((sum(totals) / 2).detach()) == pytest.approx(float(whole.detach()), abs=1e-10)
