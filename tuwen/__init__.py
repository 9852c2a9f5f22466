"""tuwen learns from pictures and the texts beside them."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuwen.model import Model, load

__all__ = ["Model", "load"]

# Torch's threads (GNU OpenMP) spin while they wait for each other, and where another program is busy on the same cores
# they take turns from the thread that computes. The library reads this when torch is loaded; what a user has set stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "0")


def __getattr__(name: str) -> Any:
    """`tuwen.load`, imported when first asked for: torch takes seconds, which `tuwen --help` should not."""
    if name in __all__:
        from tuwen import model

        return getattr(model, name)
    raise AttributeError(f"module 'tuwen' has no attribute {name!r}")
