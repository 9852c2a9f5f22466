"""COOKIE's losses against loops, value and gradient, and the checks of its card (section 11)."""

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.systems.common import (
    IMAGE_IDS,
    PROGRESS,
    TEXT_IDS,
    VOCABULARY,
    assert_same_gradients,
    build,
    example,
    gradients,
    shaken,
)
from tuwen import systems
from tuwen.data.batch import Batch, Images, Texts
from tuwen.systems.system import System

OTHERS = [
    [2, 11, 12, 3],
    [2, 22, 3],
    [2, 31, 11, 3],
    [2, 21, 22, 3],
    [2, 9, 3],
    [2, 31, 11, 3],
]  # 3 says what row 1 says


def twofold(rows: list[int] | None = None) -> Batch:
    """The example with a second view and, out of order, a second text a row."""
    rows = list(range(6)) if rows is None else rows
    batch = example(rows)
    every = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(8))
    length = batch.texts.ids.shape[1]
    other = torch.tensor([OTHERS[k] + [0] * (length - len(OTHERS[k])) for k in rows])
    order = torch.arange(2 * len(rows)).view(2, -1).T.flatten()  # row 0, its other, row 1, ...
    ids = torch.cat([batch.texts.ids, other])[order]
    owner = torch.arange(len(rows)).repeat(2)[order]
    texts = Texts(ids, ids != 0, torch.zeros(len(ids), dtype=torch.int64), owner)
    return dataclasses.replace(batch, images=Images(batch.images.pixels, None, {"second": every[rows]}), texts=texts)


def nt_xent(first: Tensor, second: Tensor, alike, temperature: Tensor) -> Tensor:
    views = torch.cat([first, second])
    total = views.new_zeros(())
    for i in range(len(views)):
        others = [j for j in range(len(views)) if j != i]
        log_p = torch.stack([views[i] @ views[j] / temperature for j in others]).log_softmax(0)
        right = [log_p[k] for k, j in enumerate(others) if alike(i, j)]
        total = total - sum(right) / len(right) / len(views)
    return total


def test_every_term_and_gradient_is_the_slow_versions():
    system, batch = shaken(build("cookie")), twofold()
    losses = system(batch, PROGRESS)
    first, other = (batch.texts.ids[k::2] for k in (0, 1))
    image, second = system.encode_images(batch.images).pooled, system.encode_images(batch.images.view("second")).pooled
    plain = [Texts(ids, ids != 0, torch.zeros(6, dtype=torch.int64)) for ids in (first, other)]
    text, another = (system.encode_texts(x).pooled for x in plain)
    said = [row.tolist() for row in torch.cat([first, other])]

    def one_picture(i, j):
        return IMAGE_IDS[i % 6] == IMAGE_IDS[j % 6]

    def one_meaning(i, j):
        return one_picture(i, j) or TEXT_IDS[i % 6] == TEXT_IDS[j % 6] or said[i] == said[j]

    scale = {name: value.exp() for name, value in system.log_scales.items()}
    across = image.new_zeros(())
    for rows, columns in ((image, text), (text, image)):
        for i in range(6):
            log_p = torch.stack([rows[i] @ columns[j] * scale["across"] for j in range(6)]).log_softmax(0)
            right = [log_p[j] for j in range(6) if one_picture(i, j) or TEXT_IDS[i] == TEXT_IDS[j]]
            across = across - sum(right) / len(right) / 12
    want = {
        "across": across,
        "pictures": nt_xent(image, second, one_picture, 1 / scale["pictures"]),
        "texts": nt_xent(text, another, one_meaning, 1 / scale["texts"]),
    }
    assert set(losses.terms) == set(want)
    for name, value in want.items():
        assert float(losses.terms[name].detach()) == pytest.approx(float(value.detach()), rel=0, abs=1e-9), name
        assert_same_gradients(gradients(losses.terms[name], system), gradients(value, system))
    assert said[8] == said[11]  # two texts of different pictures, one sentence


def parts(system: System, name: str) -> list[Tensor]:
    return list(system.get_submodule(name).parameters())


def test_the_head_is_one_module_and_the_control_has_two_that_start_equal():
    """Card, check 1; experiment E1."""
    shared, separate = build("cookie"), build("cookie", shared=False)
    names = [name for name, _ in shared.named_parameters() if "head" in name]
    assert len(names) == len(parts(shared, "shared_head"))
    for part, twin in (("shared_head", "text_head"), ("projection", "text_projection")):
        for a, b in zip(parts(separate, part), parts(separate, twin), strict=True):
            assert a is not b
            assert torch.equal(a, b)
    for a, b in zip(parts(shared, "shared_head"), parts(separate, "shared_head"), strict=True):
        assert torch.equal(a, b)


def test_both_paths_read_alike_what_is_alike():
    """Card, check 2: the same tokens through either path, no mask, give the same bits."""
    system = shaken(build("cookie")).eval()
    x = torch.randn(3, 7, system.config.width, dtype=torch.float64)
    one = system.read(x, None, None, system.shared_head, system.projection)
    other = system.read(x, torch.ones(3, 7, dtype=torch.bool), None, system.shared_head, system.projection)
    torch.testing.assert_close(one.pooled, other.pooled, rtol=0, atol=1e-12)


def test_gradient_of_the_head_is_the_sum_over_both_paths():
    """Card, check 3."""
    system, batch = shaken(build("cookie", pictures=0.0, texts=0.0)), twofold()
    found = torch.autograd.grad(system(batch, PROGRESS).total, parts(system, "shared_head"))
    sums = [torch.zeros_like(x) for x in found]
    for name in ("images", "texts"):
        encoded = system.encode(batch, PROGRESS)
        encoded = {key: value if key == name else value.detach() for key, value in encoded.items()}
        one = torch.autograd.grad(system.losses(encoded, batch, PROGRESS).total, parts(system, "shared_head"))
        sums = [a + b for a, b in zip(sums, one, strict=True)]
    for a, b in zip(found, sums, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shared", [True, False])
def test_contrast_of_pictures_moves_texts_where_the_head_is_shared_and_nowhere_else(shared):
    """Card, check 4, the method's defining test: what is learned of pictures is shared with texts."""
    system, batch = shaken(build("cookie", shared=shared)), twofold()
    first, _ = system.two_texts(batch)
    before = system.encode_texts(first).pooled.detach().clone()
    weights = list(system.parameters())
    loss = system(batch, PROGRESS).terms["pictures"]
    for weight, slope in zip(weights, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
        if slope is not None:
            weight.data -= 0.1 * slope
    after = system.encode_texts(first).pooled.detach()
    assert torch.equal(before, after) != shared


def test_without_the_inner_contrasts_it_is_a_plain_dual_encoder():
    """Card, check 9: neither a second view nor a second text is asked for, and the one loss is the same."""
    plain, full = (shaken(build("cookie", **weights)) for weights in ({"pictures": 0.0, "texts": 0.0}, {}))
    cls = systems.find("cookie")
    assert cls.needs(plain.config).views == {}
    assert cls.needs(plain.config).texts == 1
    assert cls.needs(full.config).texts == 2
    one = example()
    terms = plain(one, PROGRESS).terms
    assert list(terms) == ["across"]
    assert [name for name, _ in plain.named_parameters() if "log_scales" in name] == ["log_scales.across"]


def test_no_layers_make_a_pooled_dual_encoder():
    """Card, check 10."""
    system, batch = shaken(build("cookie", layers=0, readout="mean")), example()
    x = system.encoders["image"](batch.images.pixels)
    x = system.shared_head.norm(system.image_norm(system.image_input(x))).mean(1)
    want = torch.nn.functional.normalize(system.projection(x), dim=1)
    torch.testing.assert_close(system.encode_images(batch.images).pooled, want)


@pytest.mark.parametrize("readout", ["summary", "mean", "max"])
def test_padding_and_batch_mates_move_no_text(readout):
    """Card, checks 5 and 11."""
    system, batch = shaken(build("cookie", readout=readout)).eval(), example()
    every = system.encode_texts(batch.texts).pooled
    for row in range(6):
        length = int(batch.texts.mask[row].sum())
        ids = batch.texts.ids[row : row + 1, :length]
        alone = system.encode_texts(Texts(ids, ids != VOCABULARY.pad, torch.zeros(1, dtype=torch.int64))).pooled
        torch.testing.assert_close(alone[0], every[row], rtol=0, atol=1e-10)


def test_order_of_rows_changes_no_term():
    system, batch = shaken(build("cookie")), twofold()
    one = system(batch, PROGRESS).terms
    other = system(batch.select(torch.tensor([3, 5, 0, 1, 4, 2])), PROGRESS).terms
    for name, value in one.items():
        assert float(other[name].detach()) == pytest.approx(float(value.detach()), abs=1e-10), name


def test_encoders_are_called_once_a_picture_and_once_a_text():
    """Card, check 12: never once a pair."""
    system, batch = build("cookie").eval(), example()
    calls = []
    system.shared_head.register_forward_hook(lambda *_: calls.append(1))
    images, texts = system.encode_images(batch.images), system.encode_texts(batch.texts)
    system.scores(images, texts)
    assert len(calls) == 2
