"""The decoders against loops over blocks, and what must not change their outputs."""

import math

import pytest
import torch

from tests.nn.test_attention import linear, numbers, same_with_gradients, shaken, slow_block
from tests.reference import transformer as slow
from tuwen.data.batch import Texts
from tuwen.errors import UserError
from tuwen.nn.decoder import CausalDecoder, PatchDecoder, sines
from tuwen.nn.sizes import CrossEncoderConfig

WIDTH, SIZE, LENGTH = 8, 11, 9
IDS = torch.tensor([[2, 5, 6, 7, 8], [2, 9, 10, 5, 9], [2, 6, 3, 0, 0]])
LANGUAGE = torch.tensor([1, 0, 2])


def decoder(layers: int = 2, seed: int = 1, languages: int = 3) -> CausalDecoder:
    return shaken(CausalDecoder(CrossEncoderConfig(WIDTH, layers, 2), 6, SIZE, LENGTH, languages), seed).eval()


def memory(rows: int = 3, longest: int = 4):
    mask = torch.arange(longest) < torch.tensor([longest, 1, longest - 1])[:rows, None]
    return numbers(rows, longest, 6, seed=5), mask


WORDS = numbers(SIZE, WIDTH, seed=9)


def test_forward_and_gradients_are_the_loops():
    model, (seen, mask), words = decoder(1), memory(), WORDS.clone().requires_grad_()
    seen.requires_grad_()
    fast = model.logits(model(IDS, LANGUAGE, seen, mask, words), words)
    rows = []
    for row in range(len(IDS)):
        said = [model.tags.weight[LANGUAGE[row]], *(words[i] for i in IDS[row].tolist())]
        x = torch.stack([x + p for x, p in zip(said, model.positions, strict=False)])[None]
        x = slow.layer_norm(x, model.embedding_norm.weight, model.embedding_norm.bias, model.embedding_norm.eps)
        for block in model.stack.blocks:
            x = slow_block(block, x, None, seen[row : row + 1], mask[row : row + 1], causal=True)
        rows.append(torch.stack([torch.stack([slow.dot(w, y) for w in words]) + model.bias for y in x[0, 1:]]))
    wanted = [seen, words, model.positions, model.tags.weight, model.stack.blocks[0].cross.key_value.weight]
    same_with_gradients(fast, torch.stack(rows), wanted)


def test_a_word_changes_nothing_before_it_and_the_memory_changes_all():
    model, (seen, mask) = decoder(), memory()
    before = model(IDS, LANGUAGE, seen, mask, WORDS)
    for place in range(1, IDS.shape[1]):
        other = IDS.clone()
        other[:, place:] = (other[:, place:] + 1) % SIZE
        after = model(other, LANGUAGE, seen, mask, WORDS)
        assert torch.equal(after[:, :place], before[:, :place])
        assert ((after[:, place:] - before[:, place:]).abs().amax(-1) > 1e-6).all()
    moved = model(IDS, LANGUAGE, seen + 0.1, mask, WORDS)
    assert ((moved - before).abs().amax(-1) > 1e-6).all()


def test_the_tag_tells_the_language():
    model, (seen, mask) = decoder(), memory()
    first, second = (model(IDS, torch.full((3,), k), seen, mask, WORDS) for k in (0, 1))
    assert ((first - second).abs().amax(-1) > 1e-6).all()
    with torch.no_grad():
        model.tags.weight[[0, 1]] = model.tags.weight[[1, 0]].clone()
    swapped = model(IDS, torch.zeros(3, dtype=torch.int64), seen, mask, WORDS)
    torch.testing.assert_close(swapped, second, rtol=0, atol=1e-12)


def test_padding_of_memory_and_words_and_rows_beside_change_nothing():
    model, (seen, mask) = decoder(), memory()
    texts = Texts(IDS, IDS != 0, LANGUAGE)
    together = model.likelihood(texts, seen, mask, WORDS)
    noise = torch.cat([seen.masked_fill(~mask[..., None], 1e3), numbers(3, 2, 6, seed=3)], 1)
    longer = torch.cat([mask, torch.zeros(3, 2, dtype=torch.bool)], 1)
    padded = Texts(
        torch.cat([IDS, torch.zeros(3, 2, dtype=torch.int64)], 1), torch.nn.functional.pad(IDS != 0, (0, 2)), LANGUAGE
    )
    torch.testing.assert_close(model.likelihood(padded, noise, longer, WORDS), together, rtol=0, atol=1e-6)
    for row in range(3):
        alone = model.likelihood(texts.select(torch.tensor([row])), seen[row : row + 1], mask[row : row + 1], WORDS)
        torch.testing.assert_close(alone, together[row : row + 1], rtol=0, atol=1e-6)


@torch.no_grad()
def test_likelihood_is_the_sum_over_words_up_to_the_end():
    model, (seen, mask) = decoder(), memory()
    found = model.likelihood(Texts(IDS, IDS != 0, LANGUAGE), seen, mask, WORDS)
    for row, count in enumerate((5, 5, 3)):
        want = 0.0
        for place in range(1, count):
            states = model(
                IDS[row : row + 1, :place], LANGUAGE[row : row + 1], seen[row : row + 1], mask[row : row + 1], WORDS
            )
            scores = [float(slow.dot(w, states[0, -1]) + b) for w, b in zip(WORDS, model.bias, strict=True)]
            top = max(scores)
            total = sum(torch.tensor(s - top, dtype=torch.float64).exp().item() for s in scores)
            want += scores[int(IDS[row, place])] - top - torch.tensor(total, dtype=torch.float64).log().item()
        assert float(found[row].detach()) == pytest.approx(want, abs=1e-5)


def test_a_language_beyond_the_table_is_told():
    model, (seen, mask) = decoder(), memory()
    with pytest.raises(UserError, match=r"set model\.languages to at least 6"):
        model(IDS, torch.tensor([0, 5, 1]), seen, mask, WORDS)


# ---- of patches


def test_patches_are_painted_as_by_the_loops():
    model, kept = shaken(PatchDecoder(CrossEncoderConfig(WIDTH, 1, 2), 6, (2, 3), 1), 1), torch.tensor([[4, 0], [5, 2]])
    states = numbers(2, 2, 6, seed=5).requires_grad_()
    rows = []
    for row in range(2):
        x = []
        for place in range(6):
            at = [k for k in range(2) if kept[row, k] == place]
            x.append((linear(model.enter, states[row, at]) if at else model.unseen[None]) + model.positions[place])
        x = slow_block(model.stack.blocks[0], torch.cat(x)[None])
        norm = model.stack.norm
        rows.append(linear(model.paint, slow.layer_norm(x, norm.weight, norm.bias, norm.eps))[0])
    same_with_gradients(model(states, kept), torch.stack(rows), [states, model.unseen, model.enter.weight])
    swapped = model(states[:, [1, 0]], kept[:, [1, 0]])  # places, not order, tell which patch is which
    torch.testing.assert_close(swapped, model(states, kept), rtol=0, atol=1e-12)


def test_sines_by_hand():
    """Width 4: sine and cosine of the column, then of the row; width 8 adds a hundredth of each."""
    assert sines((2, 3), 4)[5].tolist() == pytest.approx([math.sin(2), math.cos(2), math.sin(1), math.cos(1)])
    want = [f(x) for x in (2, 1) for f in (math.sin, math.cos)]
    small = [f(x / 100) for x in (2, 1) for f in (math.sin, math.cos)]
    found = sines((2, 3), 8)[5].tolist()
    assert found == pytest.approx([x for pair in zip(want, small, strict=True) for x in pair])
