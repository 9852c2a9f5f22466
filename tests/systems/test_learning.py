"""Every system learns: on a handful of scenes its loss falls; and all systems of one seed start with equal towers."""

import statistics

import pytest
import torch

from tests.systems.common import build
from tuwen import systems
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.items import WithColumns
from tuwen.data.loader import DataConfig, Loader
from tuwen.data.order import Order
from tuwen.data.text import Tokenizer
from tuwen.nn.initial import initialise
from tuwen.nn.sizes import size
from tuwen.nn.towers import DualEncoder
from tuwen.systems.system import Progress
from tuwen.training import optim
from tuwen.training.config import TrainConfig
from tuwen.training.step import train_step

ROWS, STEPS = 12, 30
MORE_STEPS = {"ernie_unix2": 60}  # a step trains one stream of four


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return Scenes(count=ROWS, side=32)


@pytest.fixture(scope="module")
def tokenizer(scenes) -> Tokenizer:
    texts = [text for row in range(ROWS) for told in scenes.record(row).texts.values() for text in told]
    return Tokenizer.train(texts, size=300)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def loader(name: str, scenes: Scenes, tokenizer: Tokenizer, config) -> Loader:
    towers = size("tiny")
    order, system = Order(ROWS, ROWS, 0), systems.find(name)
    reads, needs = system.reads(config), system.needs(config)
    two = any(view.crop == "own" for view in needs.views.values())  # two crops that are compared must differ
    data = DataConfig(augment="crop" if two else "none", workers=0)
    corpus = WithColumns(scenes, lambda record, row: dict.fromkeys(needs.columns, 0.2), "noise")  # NLIP's
    return Loader(corpus, tokenizer, order, data, reads, needs, 0, towers.image.side, towers.text.length)


@pytest.mark.parametrize("name", systems.names())
def test_loss_falls(name, scenes, tokenizer):
    cls = systems.find(name)
    model = cls.Config.sized("tiny")
    system = cls(model, tokenizer.vocabulary)
    initialise(system, 0)
    system.roles = build(name, vocabulary=tokenizer.vocabulary).roles
    steps = MORE_STEPS.get(name, STEPS)
    config = TrainConfig(batch_size=ROWS, steps=steps, lr=3e-3, precision="float32")
    optimizer, rate = optim.build_optimizer(system, config), optim.schedule(config, steps)
    batch = loader(name, scenes, tokenizer, model)[0]  # the same rows again and again: anything must learn them
    losses: list[dict[str, float]] = []
    system.train()
    for step in range(steps):
        progress = Progress(step, 1, steps, ROWS)
        losses.append(train_step(system, system, [batch], optimizer, rate, progress, config).losses)
    first = last = 0.0
    for term in dict.fromkeys(term for step in losses for term in step):  # not every step has every term
        values = [step[term] for step in losses if term in step]
        before, after = (statistics.mean(part) for part in (values[:4], values[-4:]))
        print(name, term, round(before, 3), round(after, 3))
        first, last = first + before, last + after
    assert last < 0.8 * first


def test_towers_start_equal_in_every_system_of_one_seed(tokenizer):
    started = {}
    for name in systems.names():
        cls = systems.find(name)
        system = cls(cls.Config.sized("tiny"), tokenizer.vocabulary)
        if isinstance(getattr(system, "encoders", None), DualEncoder):
            initialise(system, 7)
            started[name] = dict(system.named_parameters())
    assert {"clip", "albef", "r2d2", "prd2", "wukong", "tokenflow", "bagformer"} <= started.keys()
    first = started["clip"]
    towers = [name for name in first if name.startswith(("encoders.image.", "encoders.text."))]
    assert len(towers) > 40
    for name, weights in started.items():
        shared = [x for x in towers if x in weights and weights[x].shape == first[x].shape]
        missing = set(towers) - set(shared)
        assert missing <= {"encoders.image.stack.norm.weight", "encoders.image.stack.norm.bias"}, name
        assert all(torch.equal(weights[x], first[x]) for x in shared), name


def test_another_seed_starts_elsewhere_and_the_teacher_starts_as_its_student(tokenizer):
    cls = systems.find("albef")
    a, b = (cls(cls.Config.sized("tiny"), tokenizer.vocabulary) for _ in range(2))
    initialise(a, 1)
    initialise(b, 2)
    pairs = zip(a.named_parameters(), b.parameters(), strict=True)
    matrices = [(name, x, y) for (name, x), y in pairs if x.dim() > 1]
    assert all(not torch.equal(x, y) for _, x, y in matrices)
    for name, parameter in a.teacher.named_parameters():
        assert torch.equal(parameter, a.get_parameter(name)), name
    flat = torch.cat([x.detach().flatten() for name, x, _ in matrices if "words" in name or "positions" in name])
    assert float(flat.std()) == pytest.approx(0.02 * 0.88, rel=0.02)  # a normal cut at two deviations has 0.88 of them


def test_initial_weights_do_not_depend_on_what_else_was_drawn(tokenizer):
    cls = systems.find("clip")
    a, b = (cls(cls.Config.sized("tiny"), tokenizer.vocabulary) for _ in range(2))
    initialise(a, 1)
    torch.randn(1000)
    initialise(b, 5)
    initialise(b, 1)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
