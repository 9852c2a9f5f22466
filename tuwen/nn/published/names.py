"""Names of published tensors and of ours, both ways, with a report of whatever does not fit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tuwen.errors import UserError, reason_of

Tensors = Mapping[str, Tensor]


Lists = Callable[[list[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class NameEntry:
    """Some of our tensors and those of theirs that say the same, with both directions.

    read: further tensors (of theirs, of ours) that `inward` and `outward` are given after those, and do not make.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    inward: Lists
    outward: Lists
    read: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


def same(ours: str, theirs: str) -> NameEntry:
    return NameEntry((ours,), (theirs,), list, list)


def both(ours: str, theirs: str) -> list[NameEntry]:
    """Weight and bias."""
    return [same(f"{ours}.{kind}", f"{theirs}.{kind}") for kind in ("weight", "bias")]


def packed(ours: str, theirs: Sequence[str]) -> list[NameEntry]:
    """Several linear layers that ours holds as one (queries, keys and values)."""
    count = len(theirs)
    return [
        NameEntry(
            (f"{ours}.{kind}",),
            tuple(f"{name}.{kind}" for name in theirs),
            lambda t: [torch.cat(t)],
            lambda o: list(o[0].chunk(count)),
        )
        for kind in ("weight", "bias")
    ]


def shaped(ours: str, theirs: str, leading: int) -> NameEntry:
    """A tensor that theirs holds with so many leading dimensions of length 1."""
    return NameEntry(
        (ours,),
        (theirs,),
        lambda t: [t[0].reshape(t[0].shape[leading:])],
        lambda o: [o[0].reshape(*[1] * leading, *o[0].shape)],
    )


@dataclass(frozen=True)
class Report:
    """What came of it. taken: ours filled; missing: ours without a source; unexpected: theirs that nothing of ours
    takes, with the reason where it is known; shapes: ours whose source has another shape; notes: what else is not as
    published, a line each."""

    taken: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: Mapping[str, str] = field(default_factory=dict)
    shapes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def refuse(self, source: str) -> None:
        """Raises where ours would not be whole.

        Raises:
            UserError: naming what is missing or of another shape.
        """
        faults = [f"lacks {name}" for name in self.missing] + list(self.shapes)
        if faults:
            raise UserError(f"{source}: {'; '.join(faults[:6])} ({len(faults)} faults in all)")

    def lines(self) -> list[str]:
        """The report for a person."""
        out = [f"{len(self.taken)} tensors taken"]
        out += [f"missing: {name}" for name in self.missing]
        out += [f"another shape: {text}" for text in self.shapes]
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.unexpected.items():
            by_reason.setdefault(reason or "unexpected, nothing here takes it", []).append(name)
        for reason, names in by_reason.items():
            shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
            out.append(f"not taken ({reason}): {shown} ({len(names)})")
        return [*out, *self.notes]


def refuse_broken_weights(tensors: Tensors, source: str) -> None:
    """Refuses weights that no training left so.

    Raises:
        UserError: one has numbers that are not finite.
    """
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise UserError(f"{source}: what becomes {name} holds numbers that are not finite; the file is damaged")


def inward(
    entries: Sequence[NameEntry],
    theirs: Tensors,
    expected: Mapping[str, torch.Size],
    known: Mapping[str, str] | None = None,
) -> tuple[dict[str, Tensor], Report]:
    """(ours, report) from theirs.

    expected: shapes of ours by name. known: beginnings of names that are left out on purpose, with the reason.
    """
    ours: dict[str, Tensor] = {}
    missing, shapes, used = [], [], set[str]()
    for entry in entries:
        needed = entry.theirs + entry.read[0]
        lacking = [name for name in needed if name not in theirs]
        used.update(entry.theirs)
        if lacking:
            missing.append(f"{', '.join(entry.ours)} (from {', '.join(lacking)})")
            continue
        try:
            values = entry.inward([_real(theirs[name]) for name in needed])
        except (RuntimeError, ValueError, IndexError) as error:  # of tensors of other dimensions
            shapes.append(f"{', '.join(entry.ours)} cannot be made: {reason_of(error)}")
            continue
        for name, value in zip(entry.ours, values, strict=True):
            if name not in expected:
                shapes.append(f"{name} has no place here")
            elif value.shape != expected[name]:
                shapes.append(f"{name} is {list(value.shape)}, not {list(expected[name])}")
            ours[name] = value.contiguous()
    named = {name for entry in entries for name in entry.ours}
    missing += [name for name in expected if name not in named]
    unexpected = {name: _reason(name, known or {}) for name in theirs if name not in used}
    return ours, Report(tuple(ours), tuple(missing), unexpected, tuple(shapes))


def outward(entries: Sequence[NameEntry], ours: Tensors) -> dict[str, Tensor]:
    """Theirs from ours."""
    return {
        name: value.contiguous()
        for entry in entries
        for name, value in zip(
            entry.theirs, entry.outward([ours[mine] for mine in entry.ours + entry.read[1]]), strict=True
        )
    }


def prefixed(entries: Sequence[NameEntry], ours: str, theirs: str) -> list[NameEntry]:
    """The entries with both sides' names under a prefix."""
    return [
        replace(
            entry,
            ours=tuple(ours + name for name in entry.ours),
            theirs=tuple(theirs + name for name in entry.theirs),
            read=(tuple(theirs + name for name in entry.read[0]), tuple(ours + name for name in entry.read[1])),
        )
        for entry in entries
    ]


def _real(value: Tensor) -> Tensor:
    if value.is_complex() or value.is_sparse or value.layout != torch.strided:
        raise ValueError(f"numbers of the kind {value.dtype}, {value.layout}")
    return value.float()


def _reason(name: str, known: Mapping[str, str]) -> str:
    return next((reason for start, reason in known.items() if name.startswith(start)), "")
