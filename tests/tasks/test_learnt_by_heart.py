"""Heads that choose learn sixty-four rows by heart: what stands between a row and its class is open to the gradient."""

import pytest
import torch

import tuwen
from tuwen import tasks
from tuwen.data.batch import Batch
from tuwen.data.corpus import Corpus
from tuwen.data.sources import make_loader
from tuwen.systems.system import Progress
from tuwen.training import loop
from tuwen.training.config import RunConfig
from tuwen.training.validation import task_rows

CORPUS = "scenes:count=64,things=12,objects=2,whole=true,side=32"
SETTINGS = {
    "train.steps": 1,
    "train.batch_size": 8,
    "train.threads": 1,
    "train.choose": "last",
    "data.workers": 0,
    "data.augment": "none",
    "tokenizer.size": 300,
}
STEPS, ENOUGH = 300, 0.05  # steps at most; the loss at which they end
LEARNT = [("vqa", "albef"), ("vqa", "clip"), ("two_pictures", "albef"), ("entailment", "albef"), ("entailment", "clip")]

pytestmark = pytest.mark.slow  # all together a minute and a half


@pytest.mark.parametrize(("task", "name"), LEARNT)
def test_sixty_four_rows_are_learnt_by_heart(task, name, tmp_path):
    config = RunConfig.of(name, "tiny", CORPUS, changes=SETTINGS, task=task)
    model = tuwen.load(loop.train(config, tmp_path / "run", quiet=True))
    system, rows = model.system, task_rows(model.config, new=False).train
    system.head.momentum = ()  # the targets themselves, not softened
    batch = all_of(rows, model)
    for part in system.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    system.train().requires_grad_(True)
    optimizer, progress = torch.optim.Adam(system.parameters(), lr=2e-3), Progress(0, 1, STEPS, len(rows))
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = sum(system.head.losses(system, batch, progress).terms.values())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(system.parameters(), 1.0)
        optimizer.step()
        if float(loss.detach()) < ENOUGH:
            break
    score = tasks.of(model.config.task).validate(model.predictor, system.head, rows)["score"]
    assert score > 95, f"loss {float(loss):.3f}"


def all_of(rows: Corpus, model: tuwen.Model) -> Batch:
    system, config = model.system, model.config
    made = make_loader(
        {"pairs": rows},
        model.tokenizer,
        config.data,
        type(system).reads(config.model),
        system.head.needs(),
        len(rows),
        0,
        config.model.image.fit,
        config.model.text.length,
        pictures=tasks.of(config.task).pictures,
    )
    return made[0]
