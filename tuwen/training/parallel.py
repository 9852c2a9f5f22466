"""Several processes as one: the group, gradients averaged, rows and flags gathered. All are no-ops in one process."""

import contextlib
import datetime
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor, nn

from tuwen.data.batch import Batch
from tuwen.errors import UserError
from tuwen.systems.system import Losses, Progress, System
from tuwen.training.config import TrainConfig


def device(name: str) -> torch.device:
    """The device of this process: "auto" is CUDA where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("config field train.device: cuda is asked for, but torch sees no CUDA device; use cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def precision(config: TrainConfig) -> Literal["float32", "bfloat16"]:
    """What a config asks for; "auto" is "bfloat16" where its device computes it fast."""
    if config.precision != "auto":
        return config.precision
    if device(config.device).type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if fast else "float32"


@contextlib.contextmanager
def group(place: torch.device) -> Iterator[None]:
    """Joins the processes that torchrun started (its environment variables), for as long as the context lasts."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    backend = "nccl" if place.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(hours=6))  # others wait while the first evaluates
    try:
        yield
    finally:
        dist.destroy_process_group()


def world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world() > 1 else 0


def barrier() -> None:
    if world() > 1:
        dist.barrier()


def wrap(system: System) -> nn.Module:
    """The system as the step calls it: with gradients averaged over processes.

    Buffers are not broadcast: queues and teachers move the same way everywhere, because what feeds them is gathered.
    """
    if world() == 1:
        return system
    with warnings.catch_warnings():  # `broadcast_buffers` goes by another name in newer versions
        warnings.simplefilter("ignore", FutureWarning)
        return nn.parallel.DistributedDataParallel(_Terms(system), broadcast_buffers=False, find_unused_parameters=True)


class _Terms(nn.Module):
    """A system whose loss terms alone have gradients: gradient exchange waits for all that a forward returns."""

    def __init__(self, system: System):
        super().__init__()
        self.system = system

    def forward(self, batch: Batch, progress: Progress, collect: bool = False) -> Losses:
        losses = self.system(batch, progress, collect)
        keep, metrics = ({k: v.detach() for k, v in part.items()} for part in (losses.keep, losses.metrics))
        return Losses(losses.terms, keep, metrics, losses.first)


def last_only(model: nn.Module, last: bool) -> contextlib.AbstractContextManager:
    """Processes exchange gradients on the last micro-batch alone."""
    if last or not isinstance(model, nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    return model.no_sync()


def gather_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor's rows [B, ...] of all processes, in rank order [W * B, ...]."""
    if world() == 1:
        return dict(tensors)
    gathered = {}
    for name, rows in tensors.items():
        sent = rows.contiguous().view(torch.uint8) if rows.dtype == torch.bool else rows.contiguous()
        parts = [torch.empty_like(sent) for _ in range(world())]
        dist.all_gather(parts, sent)
        gathered[name] = torch.cat(parts).view(rows.dtype)
    return gathered


def shared(tensors: Mapping[str, Tensor], place: torch.device) -> dict[str, Tensor]:
    """The first process's tensors, of any names and shapes, on the CPU, in every process."""
    if world() == 1:
        return dict(tensors)
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}) if rank() == 0 else b""
    size = torch.tensor([len(data)], device=place)
    dist.broadcast(size, 0)
    sent = torch.zeros(int(size), dtype=torch.uint8, device=place)
    if rank() == 0:
        sent.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    dist.broadcast(sent, 0)
    return load(sent.cpu().numpy().tobytes())


def all_true(flag: Tensor) -> bool:
    """Whether a boolean scalar is true in every process."""
    if world() == 1:
        return bool(flag)
    counted = flag.to(torch.int32)
    dist.all_reduce(counted, dist.ReduceOp.MIN)
    return bool(counted)


def any_true(flag: bool, place: torch.device) -> bool:
    """Whether a flag is true in any process."""
    return flag if world() == 1 else not all_true(torch.tensor(not flag, device=place))


def mean(values: Mapping[str, float], place: torch.device) -> dict[str, float]:
    """Each value's mean over processes."""
    if world() == 1 or not values:
        return dict(values)
    summed = torch.tensor(list(values.values()), dtype=torch.float64, device=place)
    dist.all_reduce(summed)
    return dict(zip(values, (summed / world()).tolist(), strict=True))
