"""Roles: frozen runs that a system, or the head of its task, asks while it learns; `system.roles[role]`.

They are loaded at every start, stay in evaluation mode on the loop's device, and are no part of the system: neither of
its weights, nor of its gradients, nor of what processes exchange.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tuwen.data.text import Tokenizer
from tuwen.data.views import View
from tuwen.errors import UserError, quoted
from tuwen.run import TOKENIZER, WEIGHTS, provenance
from tuwen.systems.system import Needs, Reads, System
from tuwen.training import checkpoint
from tuwen.training.config import RunConfig
from tuwen.training.start import build_system


@dataclass(frozen=True)
class Role:
    """A frozen run in its role. reads: whether it reads the student's tokens; else it has a view of its own name."""

    system: System
    config: RunConfig
    origin: dict[str, str]
    reads: bool


def load_roles(
    config: RunConfig, system: System, tokenizer: Tokenizer, languages: tuple[str, ...], place: torch.device
) -> dict[str, Role]:
    """The runs of `data.teachers`, one for each role that the system or its head asks for.

    Raises:
        UserError: a role that nobody asks for, one that is not given, or a run that cannot play it.
    """
    asked = system.teachers if system.head is None else system.head.teachers
    for role in config.data.teachers:
        if role not in asked:
            known = ", ".join(asked) or "none"
            raise UserError(
                f"config field data.teachers: {config.system} asks for no {quoted(role, 60)}; its roles: {known}"
            )
    roles = {}
    for role, capabilities in asked.items():
        if role not in config.data.teachers:
            raise UserError(
                f"{config.system} learns from a {role}, a run that can {capabilities}: "
                f"give --set data.teachers.{role}=RUN"
            )
        roles[role] = _load(role, Path(config.data.teachers[role]), capabilities, config)
        if roles[role].reads:
            _refuse_other_tokens(role, config, tokenizer, languages, roles[role].config)
        if callable(check := getattr(system, "check_teacher", None)):  # what a system asks beside capabilities (DiDE)
            check(role, roles[role].system)
        roles[role].system.to(place)
    return roles


def _load(role: str, run: Path, capabilities: str, student: RunConfig) -> Role:
    config = RunConfig.read(run)
    system = build_system(config, Tokenizer.load(run / TOKENIZER)).for_use()
    for capability in capabilities.split():
        if capability == "task":
            _refuse_other_task(role, run, student, config)
        elif not system.can(capability):
            raise UserError(f"{run}: is asked to {capability} as {role}, and system {config.system} cannot")
    checkpoint.load_weights(run / WEIGHTS, system)
    with (run / WEIGHTS).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    origin = {"run": str(run), "system": config.system, "weights": digest}
    return Role(system.requires_grad_(False).eval(), config, origin, capabilities.split() != ["encode_images"])


def _refuse_other_task(role: str, run: Path, student: RunConfig, teacher: RunConfig) -> None:
    """Refuses a run that has learnt another task than the student's, or other classes."""
    if teacher.task_name != student.task_name:
        learnt = f"has learnt {teacher.task_name}" if teacher.task_name else "has learnt no task"
        raise UserError(
            f"{run}: as {role} it teaches {student.task_name}, and it {learnt}; make one with "
            f"`tuwen train {teacher.system} --task {student.task_name} --init {run}`"
        )
    for name in ("answers", "labels", "pictures"):
        own, its = (getattr(config.task, name, None) for config in (student, teacher))
        if own != its:
            raise UserError(
                f"{run}: as {role} it tells other {name} than this run learns ({quoted(its, 40)}, here "
                f"{quoted(own, 40)}); train both on one corpus with the same task.*"
            )


def _refuse_other_tokens(
    role: str, config: RunConfig, tokenizer: Tokenizer, languages: tuple[str, ...], teacher: RunConfig
) -> None:
    """Refuses a run that reads the student's batches, and would read them otherwise."""
    run = Path(config.data.teachers[role])
    theirs, model, other = Tokenizer.load(run / TOKENIZER), config.model, teacher.model
    pairs: dict[str, tuple[Any, Any]] = {
        "tokenizer": (tokenizer.digest, theirs.digest),
        "model.text.length": (model.text.length, other.text.length),
        "model.image.fit": (model.image.fit, other.image.fit),
        "table of languages": (languages, tuple(provenance(run)["corpus"]["languages"])[: len(languages)]),
    }
    for name, (own, its) in pairs.items():
        if own != its:
            raise UserError(
                f"{run}: as {role} it reads this run's batches, but its {name} is another ({its}, here {own}); "
                f"take a run with the same one"
            )


def asked(system: System, roles: Mapping[str, Role]) -> tuple[Reads, Needs]:
    """What is asked of the data: by the encoders, by pre-training or the head in its place, and for the roles."""
    kind = type(system)
    reads = kind.reads(system.config)
    needs = kind.needs(system.config) if system.head is None else system.head.needs()
    spans, views = list(reads.spans), dict(needs.views)
    for name, role in roles.items():
        if role.reads:
            spans += type(role.system).reads(role.system.config).spans
        else:
            views[name] = View(role.config.model.image.side)
    return replace(reads, spans=tuple(dict.fromkeys(spans))), replace(needs, views=views)
