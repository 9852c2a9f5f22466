"""What evaluators of other projects ask of a model: sentence-transformers' `encode`, mteb's encoder protocol."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuwen.errors import UserError, quoted

Embed = Callable[[Sequence[Any] | None, Sequence[str] | None], tuple[Tensor | None, Tensor | None]]
SIDES = ("image", "text")


def row_vectors(embed: Embed, inputs: Any, truncate: int | None = None) -> Tensor:
    """Vectors [N, D] of texts, pictures, rows of both, or mteb's batches of them; [D] of one alone.

    inputs: a text, a Pillow image, a mapping with "text" or "image" or both, a list of these, or an iterable of batches
        (mappings from "text" and "image" to lists). Of a row with both the sum of its vectors, as in mteb's own CLIP.
    embed: (vectors of pictures, vectors of texts) of lists of these.
    truncate: so many of the first numbers of each vector.

    Raises:
        UserError: rows of anything else.
    """
    single = isinstance(inputs, str | Mapping) or not hasattr(inputs, "__iter__")
    parts = [_batch(embed, batch) for batch in _batches([inputs] if single else inputs)]
    if not parts:
        return torch.zeros(0, 0)
    vectors = torch.cat(parts)[:, :truncate]
    return vectors[0] if single else vectors


def _batches(inputs: Any) -> Iterator[Mapping[str, Sequence[Any]]]:
    """Batches as mteb gives them; a list is put into those of rows of one kind."""
    if not isinstance(inputs, list | tuple | np.ndarray):
        yield from inputs
        return
    rows = [row if isinstance(row, Mapping) else {"text" if isinstance(row, str) else "image": row} for row in inputs]
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or rows[end].keys() != rows[start].keys():
            yield {name: [row[name] for row in rows[start:end]] for name in rows[start]}
            start = end


def _batch(embed: Embed, batch: Mapping[str, Sequence[Any]]) -> Tensor:
    given = {name: list(batch[name]) for name in SIDES if batch.get(name) is not None}
    if not given:
        raise UserError(f"rows of {quoted(list(batch), 80)} have neither image nor text, which alone a run reads")
    vectors = [part for part in embed(given.get("image"), given.get("text")) if part is not None]
    return torch.stack(vectors).sum(0)


def cosine_scores(first: Any, second: Any, pairwise: bool = False) -> Tensor:
    """Cosines [N, M] of vectors [N, D] and [M, D] (a single vector is one row), or [N] of each with its own."""
    a, b = (F.normalize(torch.atleast_2d(torch.as_tensor(part).float()), dim=-1) for part in (first, second))
    return (a * b).sum(-1) if pairwise else a @ b.T


def mteb_meta(system: nn.Module, name: str, width: int, length: int) -> Any:
    """mteb's description of a run. Its revision is a digest of the weights, since mteb keeps results by it.

    Raises:
        UserError: the package is not there.
    """
    try:
        from mteb.models.model_meta import ModelMeta, ScoringFunction
    except ImportError:
        raise UserError("mteb is not installed: pip install mteb") from None
    digest = hashlib.blake2b(digest_size=8)
    for key, value in sorted(system.state_dict().items()):
        digest.update(key.encode() + value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    about = {"name": name, "revision": digest.hexdigest(), "embed_dim": width, "max_tokens": length}
    about |= {"similarity_fn_name": ScoringFunction.COSINE, "modalities": ["image", "text"], "framework": ["PyTorch"]}
    return ModelMeta.create_empty(about)


class Card:
    """Where sentence-transformers' evaluators leave their figures: by evaluator's name."""

    def __init__(self) -> None:
        self.metrics: dict[str, dict[str, float]] = {}

    def set_evaluation_metrics(self, evaluator: Any, metrics: dict[str, float], *_: Any) -> None:
        self.metrics[str(getattr(evaluator, "name", "")) or type(evaluator).__name__] = dict(metrics)
