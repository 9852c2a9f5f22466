"""GRIT-VLP's losses, slowly: one number at a time, from the equations of its card's section 4.

Shape legend: B rows, D embedding width.
"""

from collections.abc import Sequence

from torch import Tensor

from tests.reference.scalars import belong, cross_entropy, dot, mean, softmax, uniform_over


def rows_of(queries: Tensor, keys: Tensor, temperature: Tensor) -> list[list[Tensor]]:
    """a_ij = query_i . sg(key_j) / t."""
    return [[dot(query, key.detach()) / temperature for key in keys] for query in queries]


def contrast(v: Tensor, w: Tensor, ids: tuple[Sequence[int], Sequence[int]], temperature: Tensor) -> Tensor:
    """1/2 mean_i [CE(right, a_i) + CE(right, b_i)], one unit shared by all columns of one picture or one text."""
    rows = []
    for i in range(len(v)):
        right = uniform_over([belong(ids[0][i], ids[1][i], ids[0][j], ids[1][j]) for j in range(len(v))])
        a, b = rows_of(v[i : i + 1], w, temperature)[0], rows_of(w[i : i + 1], v, temperature)[0]
        rows.append((cross_entropy(a, right) + cross_entropy(b, right)) / 2)
    return mean(rows)


def consistency(v: Tensor, w: Tensor, temperature: Tensor) -> Tensor:
    """1/2 mean_i [CE(sg softmax(b_i), a_i) + CE(sg softmax(a_i), b_i)]."""
    rows = []
    for a, b in zip(rows_of(v, w, temperature), rows_of(w, v, temperature), strict=True):
        from_b, from_a = ([x.detach() for x in softmax(row)] for row in (b, a))
        rows.append((cross_entropy(a, from_b) + cross_entropy(b, from_a)) / 2)
    return mean(rows)


def hardest(queries: Tensor, keys: Tensor, ids: tuple[Sequence[int], Sequence[int]]) -> list[int | None]:
    """Of each row the wrong column of greatest product, of equals the first; None where all are right."""
    chosen: list[int | None] = []
    for i in range(len(queries)):
        best = None
        for j in range(len(keys)):
            if belong(ids[0][i], ids[1][i], ids[0][j], ids[1][j]):
                continue
            score = float(dot(queries[i], keys[j]).detach())
            if best is None or score > best[0]:
                best = score, j
        chosen.append(None if best is None else best[1])
    return chosen
