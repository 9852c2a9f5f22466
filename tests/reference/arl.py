"""ARL's own parts, slowly: attention along a graph, entities told, and how they are added to the tokens of a text."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.reference.scalars import dot, mean, softmax


def graph_attention(layer, x: Tensor, edges: Sequence[tuple[int, int]]) -> Tensor:
    """Node by node, head by head; edges as (from, to), each once, those to itself among them."""
    heads, out = layer.source.shape
    values = x @ layer.values.weight.T
    rows = []
    for node in range(len(x)):
        parts = []
        for head in range(heads):
            part = slice(head * out, (head + 1) * out)
            sources = [a for a, b in edges if b == node]
            scores = [
                torch.nn.functional.leaky_relu(
                    dot(values[a, part], layer.source[head]) + dot(values[node, part], layer.target[head]), 0.2
                )
                for a in sources
            ]
            shares = softmax(scores)
            parts.append(sum(share * values[a, part] for share, a in zip(shares, sources, strict=True)))
        rows.append(torch.cat(parts) + layer.bias)
    return torch.stack(rows)


def entities(encoder, edges: Sequence[tuple[int, int]]) -> Tensor:
    """Without dropout."""
    x = encoder.norm(encoder.vectors.weight)
    return graph_attention(encoder.second, torch.nn.functional.elu(graph_attention(encoder.first, x, edges)), edges)


def alignment(queries: Tensor, vectors: Tensor, mentioned: Sequence[Sequence[bool]]) -> Tensor:
    """Binary cross entropy, a pair at a time."""
    terms = []
    for query, row in zip(queries, mentioned, strict=True):
        for vector, there in zip(vectors, row, strict=True):
            p = torch.sigmoid(dot(query, vector))
            terms.append(-torch.log(p if there else 1 - p))
    return mean(terms)


def layer(
    block, x: Tensor, y: Tensor, z: Tensor | None, spans: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor | None]:
    """One text layer on one row without padding: x [L, W], y [I, W], z [S, K] of its entities, the tokens of each."""

    def attended(part, a: Tensor, memory: Tensor) -> Tensor:
        a = part.attention_norm(a + part.attention(a[None])[0])
        return part.cross_norm(a + part.cross(a[None], memory[None])[0])

    x = attended(block.text, x, y)
    added = [torch.zeros_like(token) for token in x]
    if z is not None:
        z = attended(block.entities, z, block.seen(y))
        for entity, tokens in zip(z, spans, strict=True):
            for token in tokens:
                added[token] = added[token] + block.to_text(entity)
    x = block.norm(block.out(x + torch.stack(added)) + x)
    x = block.text.feed_forward_norm(x + block.text.feed_forward(x))
    if z is not None:
        z = block.entities.feed_forward_norm(z + block.entities.feed_forward(z))
    return x, z
