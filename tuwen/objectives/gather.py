"""A loss's inputs from all processes: contrast and token-wise scores against the global batch."""

from collections.abc import Callable, Sequence

from torch import Tensor

from tuwen.data.gather import gather, gather_padded
from tuwen.nn.encoded import Encoded
from tuwen.objectives.contrastive import contrastive, nested_mean


def global_contrast(
    rows: Tensor,
    columns: Tensor,
    same: Tensor,
    temperature: Tensor | float,
    nested: Sequence[int] = (),
    smoothing: Tensor | None = None,
) -> Tensor:
    """`contrastive` of this process's rows with those of all processes, gradient through every process's.

    rows, columns: [B, D] unit vectors of both sides, row b of one belonging to row b of the other; same: [B, N] bool,
    `Batch.same`. nested: as in `nested_mean`. smoothing: [B], as of `smoothed`.
    """
    vectors = rows, columns, gather(rows), gather(columns)
    return nested_mean(
        lambda a, b, c, d: contrastive(a, b, c, d, same, temperature, smoothing=smoothing), vectors, nested
    )


def gather_tokens(encoded: Encoded) -> Encoded:
    """Vectors and tokens of the rows of all processes; `encoded` itself in a single process."""
    pooled = None if encoded.pooled is None else gather(encoded.pooled)
    tokens, mask = (None if x is None else gather_padded(x) for x in (encoded.tokens, encoded.token_mask))
    alone = pooled is encoded.pooled and tokens is encoded.tokens
    return encoded if alone else Encoded(pooled, tokens, mask)


def against_all(
    images: Encoded, texts: Encoded, score: Callable[[Encoded, Encoded], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """i2t [B, N] of this process's pictures with the texts of all, t2i [B, N] of its texts with the pictures of all.

    score: (S_i2t, S_t2i), each [I, T], of pictures with texts.
    """
    all_images, all_texts = gather_tokens(images), gather_tokens(texts)
    if all_images is images:
        to_text, to_image = score(images, texts)
        return to_text, to_image.T
    return score(images, all_texts)[0], score(all_images, texts)[1].T
