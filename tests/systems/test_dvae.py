"""The patch tokenizer: its codes, what is drawn from them, a run by the command, and how another system takes it."""

import dataclasses
import json

import pytest
import torch

from tests.systems.common import VOCABULARY, example
from tuwen import cli, systems, tasks
from tuwen.errors import UserError
from tuwen.nn.initial import initialise
from tuwen.nn.patch_codes import CodeEncoder, CodesConfig, load_codes, map_pixels
from tuwen.systems.dvae import DVAE, DVAEConfig
from tuwen.systems.flava import FLAVA, FLAVAConfig
from tuwen.systems.system import Progress


def tokenizer() -> DVAE:
    system = DVAE(DVAEConfig.sized("tiny"), VOCABULARY)
    initialise(system, 0)
    return system


def squares(count: int) -> torch.Tensor:
    """[count, 3, 32, 32]: each 8 x 8 place black, red or white."""
    kinds = torch.tensor([[0, 0, 0], [255, 0, 0], [255, 255, 255]], dtype=torch.uint8)
    chosen = torch.randint(0, 3, (count, 4, 4), generator=torch.Generator().manual_seed(2))
    small = kinds[chosen].permute(0, 3, 1, 2)
    return small.repeat_interleave(8, 2).repeat_interleave(8, 3)


def test_it_learns_codes_that_tell_pictures_apart():
    """Reconstruction falls far below the variance; more codes than one are used; a picture of codes is like its own."""
    torch.manual_seed(0)
    system, pixels = tokenizer(), squares(24)
    batch = dataclasses.replace(example(), images=dataclasses.replace(example().images, views={"codes": pixels}))
    optimizer = torch.optim.Adam(system.parameters(), 5e-3)
    for step in range(100):
        losses = system(batch, Progress(step, 1, 100, 24))
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    variance = float(map_pixels(pixels).var())
    assert float(losses.terms["reconstruction"].detach()) < 0.35 * variance
    codes = system.encoder.codes(pixels)
    assert len(codes.unique()) >= 3
    with torch.no_grad():
        weights = torch.nn.functional.one_hot(codes, system.config.codes.vocabulary).permute(0, 3, 1, 2).float()
        restored = (system.decoder(weights) - 0.1) / 0.8
    own = (restored - pixels / 255).square().mean((1, 2, 3))
    other = (restored - pixels.roll(1, 0) / 255).square().mean((1, 2, 3))
    assert (own < other).float().mean() > 0.9


def test_codes_do_not_depend_on_precision_batch_or_view():
    system, pixels = tokenizer(), squares(5)
    codes = system.encoder.codes(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(system.encoder.codes(pixels), codes)
    assert torch.equal(system.encoder.codes(pixels[2:3])[0], codes[2])
    assert torch.equal(system.encoder.codes(pixels.float() / 255), codes)
    images = dataclasses.replace(example().images, pixels=pixels, views={"codes": pixels})
    assert torch.equal(system.encode_images(images).states["codes"].view(5, 4, 4), codes)
    plain = dataclasses.replace(images, views={})  # the same picture at the same side: nothing to resize
    assert torch.equal(system.encode_images(plain).states["codes"].view(5, 4, 4), codes)


def test_trained_by_the_command_and_taken_by_flava(tmp_path, capsys):
    """From pictures alone, without any text beside them; resumable and loadable as every run."""
    from tuwen.data.images import encode_jpeg

    folder = tmp_path / "photos"
    folder.mkdir()
    for k, picture in enumerate(squares(30)):
        (folder / f"{k}.jpg").write_bytes(encode_jpeg(picture))
    run = tmp_path / "codes"
    settings = ["train.batch_size=8", "train.precision=float32", "data.workers=0"]
    command = ["train", "dvae", "--corpus", str(folder), "--out", str(run), "--size", "tiny", "--steps", "3"]
    assert cli.main([*command, "--set", *settings]) == 0
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(last["losses"]) == {"reconstruction", "uniform"}
    config = dataclasses.replace(FLAVAConfig.sized("tiny"), tokenizer=str(run))
    system = FLAVA(config, VOCABULARY)
    initialise(system, 0)
    before = system.codes.first.weight.clone()
    system.begin()
    fresh = CodeEncoder(config.codes)
    load_codes(fresh, run / "weights.safetensors")
    assert not torch.equal(system.codes.first.weight, before)
    assert torch.equal(system.codes.first.weight, fresh.first.weight)
    other = FLAVA(dataclasses.replace(config, codes=CodesConfig(8, 1, 32)), VOCABULARY)
    with pytest.raises(UserError, match=r"another size \(model.codes\): encoder.logits.*is \[64"):
        other.begin()


def test_what_is_no_tokenizer_is_refused(tmp_path):
    encoder = CodeEncoder(CodesConfig.sized("tiny"))
    with pytest.raises(UserError, match="train one with `tuwen train dvae"):
        load_codes(encoder, tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x80\x04junk")
    with pytest.raises(UserError, match="cannot be read"):
        load_codes(encoder, tmp_path)
    from safetensors.torch import save_file

    save_file({"words": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="holds no patch tokenizer"):
        load_codes(encoder, tmp_path)


def test_a_tokenizer_of_pictures_ranks_nothing():
    assert tasks.of_system(systems.find("dvae")) == ()
    with pytest.raises(UserError, match="dvae cannot do retrieval"):
        tasks.able("dvae", "retrieval")
