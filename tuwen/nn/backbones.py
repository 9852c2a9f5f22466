"""Any other backbone as a tower: a model of transformers by its own settings, or one whose weights come in a package.

The settings (`ImageTowerConfig.backbone`, `TextTowerConfig.backbone`) are those of the model's config.json, so that a
run's config.yaml alone is enough to build it again; no name is ever looked up on a hub.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tuwen.data.text import Vocabulary
from tuwen.errors import UserError
from tuwen.nn.locked import Lockable
from tuwen.nn.sizes import ImageTowerConfig, TextTowerConfig

EFFICIENTNET = "efficientnet-lite0"
# what a tower of our own can be asked for, in words
_ASKED = {
    "kept": "some patches alone",
    "hidden": "hidden patches",
    "layers": "the states of its layers",
    "only": "one position alone",
}


class ImageBackbone(Lockable):
    """Tokens of a picture by another network: the positions of its last grid, or its tokens as they are."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ImageTowerConfig):
        super().__init__(config.locked)
        self.config, self.pooled_width = config, config.width
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1))
        assert config.backbone is not None
        self.model = build_backbone(config.backbone)
        self.pooler = nn.Linear(config.width, config.width) if config.pooler else None
        self.lock()
        self.train()  # a fresh module is in training mode without having been told to: batch norms would move

    def run(self, pixels: Tensor, **options) -> Tensor:
        """[B, N, W] tokens from pixels [B, 3, H, W], uint8 (normalised here) or float (taken as normalised).

        Raises:
            UserError: if anything else is asked that `ImageTower.run` can give.
        """
        _refuse(options, self.config.backbone, "image")
        x = normalised(pixels, self.mean, self.std)
        if hasattr(self.model, "extract_features"):
            states = self.model.extract_features(x)  # type: ignore[operator]
        else:
            states = self.model(pixel_values=x).last_hidden_state
        return states.flatten(2).transpose(1, 2) if states.dim() == 4 else states  # [B, W, h, w] is a grid

    def train(self, mode: bool = True):
        """Batch norms keep the statistics of their pre-training: no row of a batch may depend on another."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def grid(self, tokens: Tensor) -> Tensor:
        """[B, N, W]: the grid alone, row by row, without the class token of a network that pools by one."""
        return tokens[:, 1:] if self.config.pool == "class" else tokens

    def pool(self, tokens: Tensor) -> Tensor:
        """[B, W]: the class token, or the mean or greatest over the grid, as `pool` says."""
        if self.config.pool == "class":
            return tokens[:, 0]
        return tokens.amax(1) if self.config.pool == "max" else tokens.mean(1)

    def pooled(self, tokens: Tensor) -> Tensor:
        """[B, W]: what is projected into the shared space. ConvNeXt norms its mean, and so is it done here."""
        x = self.pool(tokens)
        if str(self.config.backbone["model_type"]).startswith("convnext"):  # type: ignore[index]
            x = self.model.get_submodule("layernorm")(x)
        return x if self.pooler is None else self.pooler(x).tanh()


class TextBackbone(Lockable):
    """States of a text by another transformer."""

    def __init__(self, config: TextTowerConfig, vocabulary: Vocabulary):
        super().__init__(config.locked)
        self.config, self.pooled_width = config, config.width
        assert config.backbone is not None
        self.model = build_backbone({**config.backbone, "vocab_size": vocabulary.size})
        self.pooler = nn.Linear(config.width, config.width) if config.pooler else None
        self.lock()

    @property
    def words(self) -> nn.Embedding:
        embeddings: Any = self.model.get_input_embeddings
        return embeddings()

    def run(self, ids: Tensor, mask: Tensor, places: Tensor | None = None, **options) -> Tensor:
        """[B, L, W] states from ids [B, L] int64 and mask [B, L] bool (True on real tokens).

        Raises:
            UserError: if anything else is asked that `TextTower.run` can give.
        """
        _refuse(options, self.config.backbone, "text")
        at = None if places is None else places.expand_as(ids)
        return self.model(input_ids=ids, attention_mask=mask.long(), position_ids=at).last_hidden_state

    def padded(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return ids, mask

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        return pool_text(states, mask, self.config)

    def pooled(self, states: Tensor, mask: Tensor) -> Tensor:
        x = self.pool(states, mask)
        return x if self.pooler is None else self.pooler(x).tanh()


def _refuse(options: Mapping[str, Any], backbone: Mapping[str, Any] | None, tower: str) -> None:
    asked = " and ".join(_ASKED[name] for name in sorted(options) if options[name] is not None)
    if asked:
        kind = (backbone or {}).get("model_type")
        raise UserError(
            f"this system asks its {tower} tower for {asked}, which backbone {kind} cannot give; "
            f"take a tower without model.{tower}.backbone"
        )


def normalised(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Float pixels as a tower reads them: bytes are scaled to 0..1 and normalised, floats are taken as they are."""
    return (pixels.float() / 255 - mean) / std if pixels.dtype == torch.uint8 else pixels


def pool_kind(config: TextTowerConfig) -> str:
    """How a text tower pools: "first", "last" or "mean"."""
    if config.pool != "auto":
        return config.pool
    return "first" if config.kind in ("bert", "flava") else "last"


def pool_text(states: Tensor, mask: Tensor, config: TextTowerConfig) -> Tensor:
    """[B, W] of states [B, L, W]: the first token, the last real one or the mean of the real ones."""
    pool = pool_kind(config)
    if pool == "first":
        return states[:, 0]
    if pool == "last":
        return states[torch.arange(states.shape[0], device=states.device), mask.sum(1) - 1]
    real = mask[:, :, None].to(states.dtype)
    return (states * real).sum(1) / real.sum(1).clamp(min=1)


def build_backbone(settings: Mapping[str, Any]) -> nn.Module:
    """The network of the given settings, with weights yet to be set.

    Raises:
        UserError: if the package that has it is not installed, or knows no such network.
    """
    kind = settings.get("model_type")
    if kind == EFFICIENTNET:
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise UserError("this tower needs efficientnet-lite-pytorch: pip install 'tuwen[offline]'") from None
        return _without_classifier(EfficientNet.from_name(kind, drop_connect_rate=0.0))
    transformers = transformers_package()
    try:
        config = transformers.AutoConfig.for_model(**settings)
        return _without_pooler(transformers.AutoModel.from_config(config))
    except ValueError as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"backbone {kind!r}: transformers cannot build it: {first}") from None


def renamed(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a checkpoint by the names that the network of these settings has, as transformers renames them."""
    transformers = transformers_package()
    config = transformers.AutoConfig.for_model(**settings)
    kind = type(transformers.AutoModel.from_config(config))
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # what is left over, our own report tells
    try:
        model, about = kind.from_pretrained(None, config=config, state_dict=dict(tensors), output_loading_info=True)
    finally:
        transformers.logging.set_verbosity(level)
    lacking = set(about["missing_keys"]) | {entry[0] for entry in about.get("mismatched_keys", ())}
    state = {name: value for name, value in model.state_dict().items() if name not in lacking}
    return state | {name: tensors[name] for name in about["unexpected_keys"] if name in tensors}


def transformers_package():
    """The transformers package, which is an extra."""
    try:
        import transformers
    except ImportError:
        raise UserError("this needs transformers: pip install 'tuwen[hf]'") from None
    return transformers


def _without_classifier(model: nn.Module) -> nn.Module:
    del model._fc
    return model


def _without_pooler(model: nn.Module) -> nn.Module:
    """Without the model's own pooling layer, which towers have of their own where it is wanted."""
    pooler = getattr(model, "pooler", None)
    if isinstance(pooler, nn.Module) and any(True for _ in pooler.parameters()):
        setattr(model, "pooler", None)  # noqa: B010 (a module's attribute, as mypy sees it)
    return model
