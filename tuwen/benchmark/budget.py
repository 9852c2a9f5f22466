"""An equal budget for every arm: in steps, in pairs, in seconds of this machine, or in work that is counted.

Whatever it is given in becomes a number of steps for each arm before any run begins, from a trial of a few steps where
that is needed, and is kept with the comparison: begun again, it is the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from tuwen.benchmark.trial import Trial
from tuwen.errors import UserError

Unit = Literal["steps", "pairs", "seconds", "flops"]


@dataclass(frozen=True)
class Budget:
    """What every run may spend."""

    unit: Unit
    amount: float

    def times(self, factor: float) -> "Budget":
        return Budget(self.unit, self.amount * factor)

    def __str__(self) -> str:
        return f"{self.unit}={self.amount:g}"


def read_budget(text: str) -> Budget:
    """ "steps=2000", "pairs=1e6", "seconds=600", "flops=1e15".

    Raises:
        ValueError: it is none of these, or not above 0.
    """
    unit, _, value = text.partition("=")
    if unit not in get_args(Unit):
        raise ValueError(f"{text!r} is not steps=N, pairs=N, seconds=S or flops=F")
    try:
        amount = float(value)
    except ValueError:
        amount = 0.0
    if not 0 < amount < 1e30 or (unit == "steps" and amount != int(amount)):
        raise ValueError(f"{text!r}: give a {'whole ' if unit == 'steps' else ''}number above 0")
    return Budget(unit, amount)  # type: ignore[arg-type]


def steps_for(budget: Budget, batch_size: int, trial: Trial | None = None) -> int:
    """The steps that a budget buys an arm. trial: where it is in seconds or in work.

    Raises:
        UserError: it does not buy one step.
    """
    if budget.unit == "steps":
        return int(budget.amount)
    if budget.unit == "pairs":
        price = float(batch_size)
    else:
        assert trial is not None
        price = trial.seconds if budget.unit == "seconds" else trial.flops * batch_size
    steps = int(budget.amount / price) if price else 0
    if steps < 1:
        raise UserError(f"compare: a budget of {budget} does not buy one step, which takes {price:.3g} {budget.unit}")
    return steps


def spent(budget: Budget | None, steps: Mapping[str, int]) -> str:
    """The budget in a line, with the steps it came to where arms differ."""
    if budget is None or len(set(steps.values())) == 1:
        return "" if budget is None else str(budget)
    return f"{budget}: " + ", ".join(f"{name} {count} steps" for name, count in steps.items())
