"""AdamW over a system's parameters: which decay, which are slower, which are frozen; the learning rate of a step."""

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tuwen.errors import UserError, quoted, reason_of
from tuwen.nn.transformer import Stack
from tuwen.training.config import HEAD, TrainConfig

# last part of the name of a parameter that stands for a place or a token, not for a map between features
_PLACES = re.compile(r"position|class_token|mask_token|token_type|query_token")
# a tower's parts before its first layer
_EMBEDDING = re.compile(r"(patch|word|position|class_token|pre_norm|embed)")


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then half a cosine down to `floor`, as a factor on the peak rate.

    Step s of the `warmup` first gets start + (1 - start) (s + 1) / warmup; later ones
    floor + (1 - floor) (1 + cos(pi p)) / 2 with p = (s - warmup) / (total - warmup).
    """

    total: int
    warmup: int
    floor: float = 0.0
    start: float = 0.0

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.start + (1 - self.start) * (step + 1) / self.warmup
        passed = (step - self.warmup) / max(1, self.total - self.warmup)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, passed)))


def schedule(config: TrainConfig, total: int) -> Schedule:
    floor, start = config.min_lr / config.lr, config.warmup_from / config.lr
    return Schedule(total, round(config.warmup * total), floor, start)


def factors(system: nn.Module, config: TrainConfig) -> dict[str, float]:
    """Factor on the learning rate of every parameter that a system trains, by name; 0 is frozen.

    Raises:
        UserError: if a pattern of `rates` is no regular expression or matches no parameter.
    """
    trained = [name for name, parameter in system.named_parameters() if parameter.requires_grad]
    patterns = [(_compiled(pattern), factor) for pattern, factor in config.rates]
    weightless = getattr(system, "head", None) is not None and not any(HEAD.match(name) for name in trained)
    for pattern, _ in patterns:
        if not any(pattern.match(name) for name in trained) and not (weightless and pattern.pattern == HEAD.pattern):
            parts = ", ".join(sorted({".".join(name.split(".")[:2]) for name in trained}))
            raise UserError(
                f"config field train.rates: {quoted(pattern.pattern, 80)} matches no parameter; there are {parts}"
            )
    layered = _layer_factors(system, trained, config.layer_decay)
    chosen = {name: next((f for p, f in patterns if p.match(name)), 1.0) for name in trained}
    return {name: chosen[name] * layered[name] for name in trained}


def build_optimizer(system: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """The optimizer, one group a (factor, decay); frozen parameters take no gradient.

    Each group keeps its `factor` on the learning rate, and the `names` of its parameters.

    Raises:
        UserError: as `factors`, and if everything is frozen.
    """
    scale = factors(system, config)
    plain = _undecayed(system, config.decays)
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in system.named_parameters():
        if scale.get(name, 0.0) == 0.0:
            parameter.requires_grad_(False)
            continue
        decay = 0.0 if name in plain else config.weight_decay
        empty = {"params": [], "names": [], "factor": scale[name], "weight_decay": decay}
        group = groups.setdefault((scale[name], decay), empty)
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise UserError("config field train.rates: every parameter is frozen; nothing is left to train")
    return torch.optim.AdamW(list(groups.values()), lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets every group's learning rate to `rate` times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def trained(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def averaged(start: dict[str, Tensor], end: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) start + alpha end of what both hold (WiSE-FT, Wortsman et al. 2022, eq. 1); the rest as in end."""
    mixed = dict(end)
    for name, first in start.items():
        if name in end and end[name].is_floating_point() and first.shape == end[name].shape:
            mixed[name] = torch.lerp(first.to(end[name].device).float(), end[name].float(), alpha).to(end[name].dtype)
    return mixed


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        what = f"{quoted(pattern, 80)} is no regular expression ({reason_of(error, 80)})"
        raise UserError(f"config field train.rates: {what}") from None


def _undecayed(system: nn.Module, decays: str) -> set[str]:
    """Names of norms, biases and all of one dimension or none, unless "all" decays; of embeddings, positions and class
    tokens where "maps" alone do."""
    names = set()
    for module_name, module in system.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            place = isinstance(module, nn.Embedding) or bool(_PLACES.search(name))
            spared = decays == "maps" if place else parameter.dim() <= 1 and decays != "all"
            if spared:
                names.add(f"{module_name}.{name}" if module_name else name)
    return names


def _layer_factors(system: nn.Module, names: list[str], decay: float) -> dict[str, float]:
    """decay^(n - i) for layer i of a stack of n, decay^(n + 1) for a tower's parts before it, 1 for the rest (BEiT)."""
    stacks = {name: len(module.blocks) for name, module in system.named_modules() if isinstance(module, Stack)}

    def factor(name: str) -> float:
        for stack, layers in stacks.items():
            layer = re.match(re.escape(stack) + r"\.blocks\.(\d+)\.", name)
            if layer:
                return decay ** (layers - int(layer[1]))
            tower = stack.rpartition(".")[0]
            if name.startswith(tower + ".") and _EMBEDDING.match(name[len(tower) + 1 :]):
                return decay ** (layers + 1)
        return 1.0

    return {name: factor(name) for name in names}
