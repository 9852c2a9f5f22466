"""One optimizer step, on one page."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tuwen.data import draws
from tuwen.data.batch import Batch
from tuwen.errors import UserError
from tuwen.systems.system import Losses, Progress, System
from tuwen.training import optim, parallel
from tuwen.training.config import TrainConfig


@dataclass(frozen=True)
class StepResult:
    """What a step did: the mean losses of its micro-batches, by name, and the gradient's norm before clipping.

    collected: where the order is grouped, `first_vectors` and "entries" of the global batch, in its order.
    """

    loss: float
    losses: dict[str, float]
    metrics: dict[str, float]
    grad_norm: float
    lr: float
    collected: dict[str, Tensor]


def train_step(
    model: nn.Module,
    system: System,
    micro_batches: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    schedule: optim.Schedule,
    progress: Progress,
    config: TrainConfig,
) -> StepResult:
    """Takes one optimizer step on the micro-batches, which together are this process's part of the batch.

    model: the system as wrapped for several processes (`parallel.wrap`), or the system itself.

    Raises:
        UserError: if the loss or the gradient is not finite, naming step and samples; no weight is updated.
    """
    device, head = next(system.parameters()).device, system.head
    torch.manual_seed(draws.key("step", config.seed, progress.step, parallel.rank()))  # dropout; no state to save
    system.before_step(progress) if head is None else head.before_step(system, progress)
    optimizer.zero_grad(set_to_none=True)
    done: list[Losses] = []
    grouped = config.order == "grouped"
    for number, batch in enumerate(micro_batches, start=1):
        with parallel.last_only(model, number == len(micro_batches)):
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                losses = model(batch, progress, grouped)
            (losses.total / len(micro_batches)).backward()
        done.append(losses)

    weights = optim.trained(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(weights, config.clip_norm or float("inf"))
    total = torch.stack([losses.total.detach() for losses in done]).mean()
    if not parallel.all_true(torch.isfinite(total) & torch.isfinite(norm)):
        raise _not_finite(system, micro_batches, done, norm, progress)

    terms, metrics = _mean([losses.terms for losses in done]), _mean([losses.metrics for losses in done])
    rate = config.lr * schedule(progress.step)
    optim.set_rate(optimizer, rate)
    optimizer.step()
    keep = {name: torch.cat([losses.keep[name].detach() for losses in done]) for name in done[0].keep}
    rows = parallel.gather_rows(keep)
    system.after_step(rows, progress) if head is None else head.after_step(system, rows, progress)
    collected = {name: torch.cat([losses.first[name] for losses in done]) for name in done[0].first}
    collected |= {"entries": torch.cat([batch.entry for batch in micro_batches])} if grouped else {}
    return StepResult(float(total), terms, metrics, float(norm), rate, parallel.gather_rows(collected))


def _mean(parts: Sequence) -> dict[str, float]:
    """Each named scalar's mean over the micro-batches that have it."""
    names = dict.fromkeys(name for part in parts for name in part)
    lists: dict[str, list[Tensor]] = {name: [part[name].detach() for part in parts if name in part] for name in names}
    return {name: float(torch.stack([x.float() for x in values]).mean()) for name, values in lists.items()}


def _not_finite(
    system: System, micro_batches: Sequence[Batch], done: Sequence[Losses], norm: Tensor, progress: Progress
) -> UserError:
    """The error of a step that must not be taken: which losses, which samples."""
    bad = [k for k, losses in enumerate(done) if not torch.isfinite(losses.total)]
    terms = sorted({name for k in bad for name, term in done[k].terms.items() if not torch.isfinite(term)})
    what = f"the loss ({', '.join(terms)})" if bad else f"the gradient (norm {float(norm)})"
    samples = torch.cat([_suspects(system, micro_batches[k], progress) for k in bad or range(len(done))]).tolist()
    return UserError(
        f"step {progress.step}: {what} is not finite; nothing was updated. Samples (corpus rows): "
        f"{', '.join(map(str, samples))}. Look at them, or lower train.lr, or set train.precision=float32"
    )


@torch.no_grad()
def _suspects(system: System, batch: Batch, progress: Progress) -> Tensor:
    """Corpus rows of a batch whose own encodings are not finite; all rows where that does not tell, or of a task."""
    if system.head is not None:
        return batch.index
    broken = torch.zeros(len(batch), dtype=torch.bool, device=batch.device)
    for encoded in system.encode(batch, progress).values():
        for part in (encoded.pooled, encoded.tokens, *encoded.states.values()):
            if part is not None and len(part) == len(batch):
                broken |= ~torch.isfinite(part.flatten(1)).all(1)
    return batch.index[broken] if broken.any() else batch.index
