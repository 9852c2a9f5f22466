"""Initial weights as a function of (seed, parameter name), so that equal towers start equal in every system."""

import torch
from torch import nn

from tuwen.data import draws


def initialise(system: nn.Module, seed: int) -> None:
    """Draws every weight anew, each from a generator keyed by (seed, its name).

    Matrices: truncated normal with deviation 0.02 at 768 inputs (BERT, ViT), growing as 1/sqrt(inputs) for smaller
    widths; of layers with a `gain` normal with gain / sqrt(outputs) (He et al. 2015, so that gradients keep
    their size). Embeddings, positions and class
    tokens: normal, 0.02; biases 0, as are layers with `zero_start`; norms 1. Scalars (temperatures) keep the value
    they were built with. Teachers then copy their students.
    """
    with torch.no_grad():
        for module_name, module in system.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                _draw(module, name, parameter, draws.key(seed, _drawn_as(system, f"{module_name}.{name}")))
        copy_students(system)


def copy_students(system: nn.Module) -> None:
    """Makes every teacher in a system equal to what it teaches."""
    for module in system.modules():
        copy_student = getattr(module, "copy_student", None)
        if callable(copy_student):
            copy_student(system)


def _drawn_as(system: nn.Module, name: str) -> str:
    """The name a parameter is drawn by: its own, or that of the twin part the system names in `twins`."""
    for twin, part in getattr(system, "twins", {}).items():
        if name.startswith(f"{twin}."):
            return part + name.removeprefix(twin)
    return name


def _draw(module: nn.Module, name: str, parameter: nn.Parameter, key: int) -> None:
    generator = torch.Generator().manual_seed(key & (2**63 - 1))
    if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._BatchNorm):
        parameter.fill_(1.0 if name == "weight" else 0.0)
    elif name.endswith("bias") or getattr(module, "zero_start", False):
        parameter.zero_()
    elif parameter.dim() == 0:
        return
    else:
        inputs = 768 if parameter.dim() < 2 or isinstance(module, nn.Embedding) else parameter[0].numel()
        matrix = isinstance(module, nn.Linear | nn.Conv2d)
        deviation = 0.02 * (768 / inputs) ** 0.5 if matrix else 0.02
        values = torch.empty(parameter.shape)
        if matrix and hasattr(module, "gain"):
            parameter.copy_(values.normal_(std=module.gain / len(parameter) ** 0.5, generator=generator))
            return
        nn.init.trunc_normal_(values, std=deviation, a=-2 * deviation, b=2 * deviation, generator=generator)
        parameter.copy_(values)
