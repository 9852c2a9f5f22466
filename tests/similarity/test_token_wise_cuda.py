"""The Triton kernel against the definition, values and gradients: on a GPU, or anywhere by Triton's interpreter.

TRITON_INTERPRET=1 python -m pytest tests/similarity/test_token_wise_cuda.py   (with triton installed; about a minute)
"""

import os

import pytest
import torch

from tests.similarity.test_flows import gradients_of
from tuwen.nn.encoded import Encoded
from tuwen.similarity.flows import MaxFlow, SoftFlow, Transport
from tuwen.similarity.token_wise import token_scores, token_scores_slow

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from tuwen.similarity import token_wise_cuda  # noqa: E402

DEVICE = "cpu" if INTERPRETED else "cuda"
FLOWS = [
    MaxFlow(),
    MaxFlow("sum"),
    MaxFlow(padding="zeros"),
    SoftFlow(),
    SoftFlow(5.0, "own"),
    SoftFlow(10.0, "uniform"),
    SoftFlow(signed=True),
    SoftFlow(normalize=True),
    SoftFlow(detach=True),
]


def drawn(rows: int, tokens: int, width: int, seed: int, masked: bool, dtype: torch.dtype) -> Encoded:
    draw = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.normalize(torch.randn(rows, tokens, width, generator=draw) + 0.3, dim=-1)
    whole = torch.nn.functional.normalize(x.sum(1) + torch.randn(rows, width, generator=draw), dim=-1)
    real = torch.arange(tokens) < torch.randint(0, tokens + 1, (rows, 1), generator=draw)
    real[0] = True
    return Encoded(whole.to(dtype), x.to(dtype), real if masked else None).to(DEVICE)


@pytest.mark.parametrize("flow", FLOWS, ids=str)
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [(2, 5, 3, 7, 10), (1, 17, 2, 4, 70)], ids=str)
def test_kernel_is_the_definition(flow, masked, dtype, sizes):
    pictures, tokens, texts, words, width = sizes
    images, sentences = drawn(pictures, tokens, width, 1, masked, dtype), drawn(texts, words, width, 2, masked, dtype)
    found = []
    for fast in (True, False):
        inputs = [
            x.clone().requires_grad_() for x in (images.tokens, sentences.tokens, images.pooled, sentences.pooled)
        ]
        sides = Encoded(inputs[2], inputs[0], images.token_mask), Encoded(inputs[3], inputs[1], sentences.token_mask)
        scores = by_kernel(*sides, flow) if fast else token_scores_slow(*sides, flow)
        found.append((scores, gradients_of(scores, inputs)))
    close = 1e-5 if INTERPRETED else 1e-4  # three products in TF32 stand for one in float32
    for part in (0, 1):
        for a, b in zip(found[0][part], found[1][part], strict=True):
            assert torch.allclose(a.float(), b.float(), atol=close if a.dtype == torch.float32 else 2e-2)


def by_kernel(images: Encoded, texts: Encoded, flow):
    if not INTERPRETED:
        return token_scores(images, texts, flow)
    v, w, v_whole, w_whole = (x.float() for x in (images.tokens, texts.tokens, images.pooled, texts.pooled))
    if isinstance(flow, MaxFlow) and flow.padding == "zeros" and texts.token_mask is not None:
        w = w * texts.token_mask[..., None]
    whole = (v_whole, w_whole) if flow.masses else (None, None)
    return token_wise_cuda.token_scores(flow, v, w, *whole, images.token_mask, texts.token_mask)


def test_equal_bests_share_the_gradient():
    v = torch.tensor([[[1.0, 0.0]]], device=DEVICE)
    w = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]], device=DEVICE, requires_grad=True)
    to_text, _ = by_kernel(Encoded(v[:, 0], v), Encoded(w[:, 0].detach(), w), MaxFlow())
    (gradient,) = torch.autograd.grad(to_text.sum(), w)
    assert gradient[0, :, 0].tolist() == pytest.approx([0.5, 0, 0.5])


def test_what_does_not_fit_is_left_to_blocks():
    tokens = torch.zeros(1, 300, 4, device=DEVICE)
    assert not token_wise_cuda.fits(tokens, tokens, MaxFlow())
    assert not token_wise_cuda.fits(tokens[:, :9], tokens[:, :9], Transport())
    assert not token_wise_cuda.fits(tokens[:, :9].double(), tokens[:, :9].double(), MaxFlow())
    assert token_wise_cuda.fits(tokens[:, :256], tokens[:, :64], SoftFlow())
