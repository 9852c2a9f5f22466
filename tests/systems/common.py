"""A tiny system in float64 and a batch that holds what goes wrong: one picture twice, one text twice, padding."""

import dataclasses

import torch
from torch import Tensor

from tests.reference import albef as slow
from tuwen import systems
from tuwen.data.batch import Batch, Images, Texts
from tuwen.data.text import Vocabulary
from tuwen.nn.initial import initialise
from tuwen.systems.system import Progress, System

VOCABULARY = Vocabulary(size=40, pad=0, unknown=1, cls=2, sep=3, mask=4)
WORDS = [
    [2, 11, 12, 13, 14, 15, 16, 17, 3],
    [2, 21, 22, 3],
    [2, 31, 11, 32, 12, 33, 3],
    [2, 21, 22, 3],
    [2, 8, 9, 10, 38, 39, 3],
    [2, 25, 3],
]
IMAGE_IDS = [71, 72, 71, 73, 74, 75]  # rows 0 and 2 show one picture
TEXT_IDS = [81, 82, 83, 82, 84, 85]  # rows 1 and 3 say one text
PROGRESS = Progress(step=3, steps_per_epoch=5, total_steps=10, batch_size=6)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def units(rows: int, width: int, seed: int) -> Tensor:
    x = random(rows, width, seed=seed)
    return x / x.norm(dim=1, keepdim=True)


def example(rows: list[int] | None = None) -> Batch:
    rows = list(range(len(WORDS))) if rows is None else rows
    longest = max(map(len, WORDS)) + 1
    ids = torch.tensor([WORDS[k] + [0] * (longest - len(WORDS[k])) for k in rows])
    every = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    every[2] = every[0]
    language = torch.zeros(len(rows), dtype=torch.int64)
    image_id, text_id = (torch.tensor([x[k] for k in rows]) for x in (IMAGE_IDS, TEXT_IDS))
    return Batch(Images(every[rows]), Texts(ids, ids != 0, language), image_id, text_id, torch.tensor(rows) + 40)


def build(name: str, seed: int = 0, vocabulary: Vocabulary = VOCABULARY, **changes) -> System:
    """A system of size tiny as a run would start it."""
    cls = systems.find(name)
    config = cls.Config.sized("tiny")
    # as published: queued keys count from the first step, negatives are drawn by the whole scores, one masked text
    changes = {"queue_from": 0.0, "hardness": 1.0, "enhanced": True, **changes}
    system = cls(dataclasses.replace(config, **{k: v for k, v in changes.items() if hasattr(config, k)}), vocabulary)
    initialise(system, seed)
    if cls.teachers:  # frozen runs, of other weights
        system.roles = {role: build("vilt", seed + 1, vocabulary).eval().requires_grad_(False) for role in cls.teachers}
    return system


def shaken(system: System, seed: int = 3) -> System:
    """In float64, every weight moved on (the teacher's too, otherwise), the queue partly filled: mid-run."""
    system = system.double()
    for teacher in system.roles.values():
        teacher.double()
    with torch.no_grad():
        for k, parameter in enumerate(system.parameters()):
            if parameter.dim():
                parameter.add_(0.05 * random(*parameter.shape, seed=seed * 1000 + k))
    if hasattr(system, "queue"):
        width = system.config.embed
        ids = torch.tensor([900, 71, 901]), torch.tensor([950, 951, 82])
        system.queue.enqueue(units(3, width, 1), units(3, width, 2), *ids)
        ids = torch.tensor([75, 902]), torch.tensor([952, 953])
        system.queue.enqueue(units(2, width, 3), units(2, width, 4), *ids)
    return system.train()


def gradients(loss: Tensor, system: System) -> dict[str, Tensor | None]:
    named = {name: p for name, p in system.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    return dict(zip(named, found, strict=True))


def assert_same_gradients(ours: dict[str, Tensor | None], theirs: dict[str, Tensor | None]) -> None:
    """Every parameter's gradient to 1e-9 of the largest."""
    for name in theirs:
        a, b = (torch.zeros(()) if g is None else g for g in (ours[name], theirs[name]))
        assert (a - b).abs().max() <= 1e-9 * max(1.0, float(b.abs().max())), name


def queue_of(system) -> slow.Queue:
    """What the tests' set-up wrote, as numbers: 3 pairs at the first event, 2 at the second, 3 slots never filled."""
    ids = [900, 71, 901, 75, 902, 0, 0, 0], [950, 951, 82, 952, 953, 0, 0, 0]
    filled, ages = [True] * 5 + [False] * 3, [2, 2, 2, 1, 1, 0, 0, 0]
    return slow.Queue(system.queue.images, system.queue.texts, *ids, filled, ages)


def watched(monkeypatch, where, name: str) -> list:
    """Records every call of a function a system uses: (arguments, result)."""
    calls, real = [], getattr(where, name)

    def record(*args, **options):
        calls.append((args, real(*args, **options)))
        return calls[-1][1]

    monkeypatch.setattr(where, name, record)
    return calls


def expected_negatives(
    queries: Tensor, keys: Tensor, temperature: Tensor, draws: Tensor, ids: tuple[list[int], list[int]]
) -> list[int | None]:
    """The wrong partner of each row (None where all are right), by the slow sampler on the same draws."""
    image_ids, text_ids = ids
    found = []
    for i in range(len(queries)):
        same = [slow.belong(image_ids[i], text_ids[i], image_ids[j], text_ids[j]) for j in range(len(keys))]
        scores = [slow.dot(queries[i], keys[j]) / temperature for j in range(len(keys))]
        found.append(slow.draw(scores, same, float(draws[i])))
    return found
