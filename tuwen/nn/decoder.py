"""Decoders that say one word after the other, reading a memory; and those of the patches of a picture.

Shape legend: B rows, L words said so far ([CLS] first), S positions of the memory, W width, V vocabulary, N patches.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tuwen.data.batch import Texts
from tuwen.errors import UserError
from tuwen.nn.sizes import CrossEncoderConfig
from tuwen.nn.transformer import Cache, Stack


class CausalDecoder(nn.Module):
    """Post-norm layers of causal self-attention, cross-attention over a memory, feed-forward (Vaswani et al. 2017).

    Word embeddings, for input and output alike, are a text tower's and are handed to each call; positions, norm and
    output bias are its own. Before the words stands a language tag: a learned vector for each language of the run's
    table. It is no word of the vocabulary, so it is never said.
    """

    def __init__(
        self, config: CrossEncoderConfig, memory_width: int, vocabulary_size: int, length: int, languages: int
    ):
        """length: most words of a text, special ones included. languages: size of the table of tags."""
        super().__init__()
        self.length = length
        self.tags = nn.Embedding(languages, config.width)
        self.positions = nn.Parameter(torch.zeros(length, config.width))
        self.embedding_norm = nn.LayerNorm(config.width, config.eps)
        self.dropout = nn.Dropout(config.dropout)
        self.stack = Stack.of(config, "post", memory_width, causal=True)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))

    def caches(self) -> list[tuple[Cache, Cache]]:
        """Empty caches of every block, for `forward`."""
        return [(Cache(), Cache()) for _ in self.stack.blocks]

    def forward(
        self,
        ids: Tensor,
        language: Tensor,
        memory: Tensor,
        memory_mask: Tensor | None,
        words: Tensor,
        caches: Sequence[tuple[Cache, Cache]] | None = None,
    ) -> Tensor:
        """[B, L, W]: the state at l has read the tag and ids[:, : l + 1], and tells word l + 1.

        ids: [B, L] with L below `length`. language: [B] index into the table of tags. memory: [B, S, M]; memory_mask:
        [B, S] bool. words: the word embeddings [V, W].
        caches: of positions read before; only the states of those that are new come back, and the tag's at first.
        """
        if language.device.type == "cpu" and len(language) and int(language.max()) >= self.tags.num_embeddings:
            raise UserError(
                f"the corpus has more languages than the decoder's table of {self.tags.num_embeddings}; "
                f"set model.languages to at least {int(language.max()) + 1}"
            )
        x = torch.cat([self.tags(language)[:, None], words[ids]], 1) + self.positions[: ids.shape[1] + 1]
        past = 0 if caches is None or caches[0][0].keys is None else caches[0][0].keys.shape[2]
        x = self.dropout(self.embedding_norm(x[:, past:]))
        states = self.stack(x, None, memory, memory_mask, caches=caches)
        return states if past else states[:, 1:]

    def logits(self, states: Tensor, words: Tensor) -> Tensor:
        """[..., V] of the next word, from states [..., W] and the word embeddings [V, W]."""
        return states @ words.T + self.bias

    def taught(self, texts: Texts, memory: Tensor, memory_mask: Tensor | None, words: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher forcing: (states [K, W], words to tell [K]) of every word after [CLS], [SEP] included."""
        states = self(texts.ids[:, :-1], texts.language, memory, memory_mask, words)
        follows = texts.mask[:, 1:]
        return states[follows], texts.ids[:, 1:][follows]

    def likelihood(self, texts: Texts, memory: Tensor, memory_mask: Tensor | None, words: Tensor) -> Tensor:
        """[B] float32: log probability of each text, [SEP] included, given its memory."""
        states, following = self.taught(texts, memory, memory_mask, words)
        log_p = self.logits(states, words).float().log_softmax(-1).gather(1, following[:, None])[:, 0]
        row = torch.nonzero(texts.mask[:, 1:])[:, 0]
        return log_p.new_zeros(len(texts)).index_add(0, row, log_p)


class Speaker:
    """A decoder bound to its memory, asked for one word after the other.

    cached: keys and values of what was said are kept; otherwise everything is read anew for each word.
    """

    def __init__(
        self,
        decoder: CausalDecoder,
        words: Tensor,
        language: Tensor,
        memory: Tensor,
        memory_mask: Tensor | None,
        cached: bool = True,
    ):
        self.decoder, self.words, self.cached = decoder, words, cached
        self.language, self.memory, self.memory_mask = language, memory, memory_mask
        self.caches = decoder.caches() if cached else None

    def __len__(self) -> int:
        return len(self.language)

    def fresh(self) -> "Speaker":
        """The same speaker before its first word."""
        return Speaker(self.decoder, self.words, self.language, self.memory, self.memory_mask, self.cached)

    def log_probabilities(self, ids: Tensor) -> Tensor:
        """[B, V] float32 of the word after ids [B, L]; with a cache, ids are those of the last call and one more."""
        states = self.decoder(ids, self.language, self.memory, self.memory_mask, self.words, self.caches)
        return self.decoder.logits(states[:, -1], self.words).float().log_softmax(-1)

    def select(self, rows: Tensor) -> None:
        """Goes on with the given rows (int64 [R]), which may repeat."""
        self.language, self.memory = self.language[rows], self.memory[rows]
        self.memory_mask = None if self.memory_mask is None else self.memory_mask[rows]
        for caches in self.caches or ():
            for cache in caches:
                cache.select(rows)

    def reorder(self, rows: Tensor) -> None:
        """`select` among rows of equal memory and language: what was said moves, the memory stays."""
        for own, _ in self.caches or ():
            own.select(rows)


class PatchDecoder(nn.Module):
    """Pixels of every patch from the states of those that were seen (MAE, He et al. 2022, section 3).

    Seen patches stand at their places, one learned vector at the others'; positions are fixed sines and cosines; then
    pre-norm self-attention over all, and a linear layer to pixels. A class token's state is no patch: leave it out.
    With `text_width` every layer looks at a text too (VLMAE).
    `tuwen.objectives.masked_pixels` holds the pixels against the picture.
    """

    positions: Tensor

    def __init__(
        self,
        config: CrossEncoderConfig,
        memory_width: int,
        grid: tuple[int, int],
        patch: int,
        text_width: int | None = None,
    ):
        """grid: patches down and across; patch: their side in pixels. config.width must divide by 4."""
        super().__init__()
        self.enter = nn.Linear(memory_width, config.width)
        self.unseen = nn.Parameter(torch.zeros(config.width))
        self.register_buffer("positions", sines(grid, config.width), persistent=False)
        self.stack = Stack.of(config, "pre", text_width)
        self.paint = nn.Linear(config.width, 3 * patch * patch)

    def placed(self, states: Tensor, kept: Tensor) -> Tensor:
        """[B, N, W] what the layers read: `forward`'s states at their places, the unseen's vector at the others'."""
        seen = self.enter(states)
        x = self.unseen.to(seen.dtype).expand(len(seen), len(self.positions), -1)
        return x.scatter(1, kept[..., None].expand_as(seen), seen) + self.positions.to(seen.dtype)

    def forward(
        self, states: Tensor, kept: Tensor, texts: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """[B, N, 3 patch patch] from states [B, K, M] of the patches kept [B, K] (int64, their places in the grid).

        texts: [B, L, T] states that every layer looks at, text_mask [B, L] bool.
        """
        return self.paint(self.stack(self.placed(states, kept), None, texts, text_mask))


class FeatureDecoder(nn.Module):
    """A vector for every patch from joint states: a learned query a patch, pre-norm layers that look at them (VLMAE).

    `tuwen.objectives.masked_features` holds the vectors against another tower's.
    """

    def __init__(self, config: CrossEncoderConfig, memory_width: int, patches: int, width: int):
        """width: of the vectors told."""
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(patches, config.width))
        self.stack = Stack.of(config, "pre", memory_width)
        self.leave = nn.Linear(config.width, width)

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """[B, N, width] from joint states [B, L, M] with their mask [B, L] bool."""
        queries = self.query_tokens.to(states.dtype).expand(len(states), -1, -1)
        return self.leave(self.stack(queries, None, states, mask))


def sines(grid: tuple[int, int], width: int) -> Tensor:
    """[h w, width]: sines and cosines of the column, then of the row, at width / 4 wavelengths (MAE's code)."""
    rates = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = (torch.arange(count, dtype=torch.float64)[:, None] * rates for count in grid)
    across = torch.cat([column.sin(), column.cos()], 1).expand(grid[0], -1, -1)
    down = torch.cat([row.sin(), row.cos()], 1)[:, None].expand(-1, grid[1], -1)
    return torch.cat([across, down], 2).flatten(0, 1).float()
