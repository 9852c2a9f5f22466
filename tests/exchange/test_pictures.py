"""Preprocessing of published processors on odd shapes, and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.exchange.checkpoints import write_pictures
from tuwen.errors import UserError
from tuwen.nn.published.files import picture_settings
from tuwen.nn.sizes import ImageTowerConfig

t = pytest.importorskip("transformers")

SHAPES = [(37, 91), (91, 37), (32, 32), (33, 32), (5, 48), (200, 3), (640, 427)]  # width, height


def processors():
    square = {"height": 32, "width": 32}
    plain = {"size": square, "resample": 2}
    return {
        "clip": t.CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size=square),
        "siglip": t.SiglipImageProcessorPil(size=square, resample=3),
        "vit": t.ViTImageProcessorPil(**plain),
        "chinese_clip": t.ChineseCLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False),
        "convnext": t.ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.875, resample=3),
        "deit": t.DeiTImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False, resample=3),
    }


KINDS = ("clip", "siglip", "vit", "chinese_clip", "convnext", "deit")


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_odd_shapes_as_the_processor_makes_them_ready(kind, tmp_path):
    theirs = processors()[kind]
    theirs.save_pretrained(tmp_path)
    config = ImageTowerConfig(**{"side": 32, **picture_settings(tmp_path, 32)})
    generator = np.random.default_rng(0)
    for width, height in SHAPES:
        coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        pixels = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        want = theirs(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0].float()
        got = config.fit(torch.from_numpy(pixels).permute(2, 0, 1)).float() / 255
        got = (got - torch.tensor(config.mean)[:, None, None]) / torch.tensor(config.std)[:, None, None]
        levels = (got - want).abs() * torch.tensor(config.std)[:, None, None] * 255
        assert levels.max() < 2.5, f"{width} x {height}: {levels.max():.2f} levels of 255"
        assert levels.mean() < 0.25, f"{width} x {height}: {levels.mean():.2f} levels of 255 on average"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"do_rescale": False}, "do_rescale"),
        ({"rescale_factor": 1 / 127.5}, "1/255"),
        ({"do_center_crop": False}, "keep their aspect"),
        ({"do_center_crop": False, "size": {"height": 32, "width": 24}}, "not square"),
        ({"crop_size": {"height": 24, "width": 24}}, "24 pixels"),
        ({"resample": 17}, "resample 17"),
        ({"do_pad": True}, "do_pad"),
        ({"size": {"longest_edge": 32}}, "size of"),
        ({"size": "big"}, "size of"),
        ({"size": {"shortest_edge": 30}}, "padded to the crop"),
        ({"crop_size": {"height": 32, "width": 24}}, "not square"),
        ({"image_mean": [0.5]}, "three colours"),
        ({"image_std": [0.0, 1.0, 1.0]}, "three colours"),
    ],
)
def test_a_step_that_is_not_done_here_is_refused(changes, line, tmp_path):
    write_pictures(tmp_path, **changes)
    with pytest.raises(UserError, match=line):
        picture_settings(tmp_path, 32)


def test_a_damaged_file_is_told(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps([1]))
    with pytest.raises(UserError, match="names with values"):
        picture_settings(tmp_path, 32)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        picture_settings(tmp_path, 32)
