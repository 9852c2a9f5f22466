"""The order of a run that groups (`train.order: grouped`): collected in one epoch, followed in the next."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from tuwen.data import grouping
from tuwen.data.loader import Loader
from tuwen.data.sources import MixedLoader
from tuwen.errors import UserError
from tuwen.nn.encoded import first_vectors
from tuwen.systems.system import Progress, System
from tuwen.training.config import TrainConfig


class Grouping:
    """Collects the vectors of the steps and plans the next epoch from them (GRIT-VLP's card, section 4.1).

    The global batch is collected, so that the plan is the same function of the vectors for any number of processes.
    An epoch uses steps * batch_size entries; those that the last one left out take the places of as many others.
    plan: [steps * batch_size] int64, entries of the present epoch in order; None: in the first, which is shuffled.
    """

    def __init__(self, entries: int, batch_size: int, seed: int, search: int, queue: int):
        """entries: that the order runs over. search, queue: in entries, see `tuwen.data.grouping.sizes`."""
        self.entries, self.batch_size, self.seed, self.search, self.queue = entries, batch_size, seed, search, queue
        self.plan: Tensor | None = None
        self._ordered: list[np.ndarray] = []  # of the next plan, a queue after the other
        self._collected: list[dict[str, np.ndarray]] = []  # steps of the present queue

    def add(self, collected: Mapping[str, Tensor], epoch: int) -> None:
        """Takes in a step: "images" and "texts" [B, D], "entries" [B] int64; a full queue is grouped."""
        self._collected.append({name: tensor.cpu().numpy() for name, tensor in collected.items()})
        if len(self._collected) * self.batch_size == self.queue:
            self._group(epoch)

    def finish(self, epoch: int) -> Tensor:
        """The plan of the next epoch, from all that this one collected."""
        if self._collected:
            self._group(epoch)
        key = (self.seed, epoch, "grouping")
        order = grouping.with_blocks_shuffled(np.concatenate(self._ordered), self.batch_size, key)
        self._ordered = []
        return torch.from_numpy(grouping.with_left_out(order, self.entries, key))

    def _group(self, epoch: int) -> None:
        whole = _joined(self._collected)
        key = (self.seed, epoch, "grouping", len(self._ordered))
        order = grouping.grouped(whole["images"], whole["texts"], whole["entries"], self.search, key)
        self._ordered.append(order)
        self._collected = []

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs to plan as if it had never stopped."""
        state = {f"ordered.{k}": torch.from_numpy(order) for k, order in enumerate(self._ordered)}
        if self._collected:
            state |= {f"held.{name}": torch.from_numpy(values) for name, values in _joined(self._collected).items()}
        return state if self.plan is None else state | {"plan": self.plan}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.plan = state.get("plan")
        self._ordered = [
            state[f"ordered.{k}"].numpy() for k in range(sum(name.startswith("ordered.") for name in state))
        ]
        tensors = {name.removeprefix("held."): v.numpy() for name, v in state.items() if name.startswith("held.")}
        steps = len(tensors["entries"]) // self.batch_size if tensors else 0
        self._collected = [
            {name: values[k * self.batch_size : (k + 1) * self.batch_size] for name, values in tensors.items()}
            for k in range(steps)
        ]


def _joined(steps: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([step[name] for step in steps]) for name in steps[0]}


def make_grouping(
    config: TrainConfig, loader: Loader | MixedLoader, system: System, progress: Progress
) -> Grouping | None:
    """What collects and plans where the order is grouped; None where it is not.

    Raises:
        UserError: several corpora are mixed, or the system gives no vector a picture and a text; before any step.
    """
    if config.order != "grouped":
        return None
    if system.head is not None:
        raise UserError("config field train.order: grouped chains pairs, and a task's head learns no contrast of them")
    if not isinstance(loader, Loader):
        raise UserError(
            "config field train.order: grouped plans one corpus of pairs, and this system mixes sources; "
            "set train.order=shuffled"
        )
    if loader.corpus.weights is not None:
        raise UserError(
            f"config field train.order: grouped plans one corpus, and {loader.corpus.name} mixes several; "
            "set train.order=shuffled"
        )
    _refuse_vectors(loader, system, progress)
    whole = grouping.sizes(config.batch_size, config.group_search, config.group_queue)
    return Grouping(loader.order.rows, config.batch_size, config.seed, *whole)


@torch.no_grad()
def _refuse_vectors(loader: Loader, system: System, progress: Progress) -> None:
    """Looks at the first row of the first batch; changes nothing in the system."""
    device = next(system.parameters()).device
    batch = loader.load(0, 0, loader.order.batch_size)[0].to(device)
    training = system.training
    system.eval()
    try:
        first_vectors(system.encode(batch, progress), batch)
    finally:
        system.train(training)
