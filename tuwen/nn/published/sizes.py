"""Bounds on every number of a published config that sizes something, before anything is built by it."""

from collections.abc import Mapping
from typing import Any

from tuwen.errors import UserError, quoted

_WIDTH, _LAYERS, _WORDS = (1, 65_536), (1, 1_000), (1, 10_000_000)
# by name, wherever it stands: the least and the most
SIZES = {
    **dict.fromkeys(("hidden_size", "embed_dim", "dim", "d_model", "projection_dim", "project_dim"), _WIDTH),
    **dict.fromkeys(("projection_size", "image_text_hidden_size", "contrastive_hidden_size"), _WIDTH),
    **dict.fromkeys(("hidden_sizes", "embedding_size", "encoder_hidden_size"), _WIDTH),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "ffn_dim"), (1, 1_048_576)),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "depths", "num_blocks_per_group", "num_groups"), _LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_heads", "num_heads"), (1, 1_024)),
    **dict.fromkeys(("image_size", "patch_size", "num_channels", "shortest_edge", "longest_edge"), (1, 16_384)),
    **dict.fromkeys(("height", "width", "crop_size"), (1, 16_384)),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "num_patches", "max_num_patches"), _WORDS),
    "type_vocab_size": (0, 10_000),
}
_PARTS = (
    "vision_config",
    "text_config",
    "image_config",
    "multimodal_config",
    "image_codebook_config",
    "image_processor",
)
_NAMES = ("model_type", "hidden_act")
_DEPTH = 8


def checked_settings(settings: Mapping[str, Any], where: str, depth: int = 0) -> dict[str, Any]:
    """The settings, nested ones too, without those that are null and size something: the usual value holds then.

    Raises:
        UserError: a number out of bounds or none, a part that is no object, or too deep a nesting.
    """
    if depth > _DEPTH:
        raise UserError(f"{where}: its settings are nested more than {_DEPTH} deep")
    out = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            out[name] = checked_settings(value, where, depth + 1)
        elif value is not None or not (name in SIZES or name in _PARTS or name in _NAMES or name == "layer_norm_eps"):
            _refuse(name, value, where)
            out[name] = value
    return out


def _refuse(name: str, value: Any, where: str) -> None:
    if name in _PARTS:
        raise UserError(f"{where}: {name} is {quoted(value, 80)}, not settings by name")
    if name in _NAMES and not isinstance(value, str):
        raise UserError(f"{where}: {name} is {quoted(value, 80)}, not a name")
    if name == "layer_norm_eps" and not (_is_number(value) and 0 <= value < 1):
        raise UserError(f"{where}: {name} is {quoted(value, 80)}, not a small number")
    if name not in SIZES:
        return
    least, most = SIZES[name]
    for size in value if isinstance(value, list | tuple) and len(value) <= 1_000 else [value]:
        if not (isinstance(size, int) and not isinstance(size, bool) and least <= size <= most):
            raise UserError(f"{where}: {name} is {quoted(value, 80)}, not a whole number from {least} to {most:,}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
