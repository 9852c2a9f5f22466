"""tuwen learns from pictures and the texts beside them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuwen.model import Model, load

__all__ = ["Model", "load"]


def __getattr__(name: str) -> Any:
    """`tuwen.load`, imported when first asked for: torch takes seconds, which `tuwen --help` should not."""
    if name in __all__:
        from tuwen import model

        return getattr(model, name)
    raise AttributeError(f"module 'tuwen' has no attribute {name!r}")
