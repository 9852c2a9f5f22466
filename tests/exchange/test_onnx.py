"""Exported towers against torch: difference, dynamic sizes, stale and missing exports, 8 bits."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

import tuwen
from tuwen import cli
from tuwen.errors import UserError
from tuwen.exchange.onnx import export_onnx

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
TEXTS = ["a dog", "一只很大的狗在草地上奔跑", "two red boats on the water " * 3]


def made(system, folder, *settings):
    words = f"train {system} --corpus scenes:count=40,side=32 --out {folder} --size tiny --steps 1"
    assert cli.main([*words.split(), "--set", "train.batch_size=4", "data.workers=0", *settings]) == 0
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    layers = ("model.image.layers=1", "model.text.layers=1", "model.fusion.layers=1")
    return made("r2d2", tmp_path_factory.mktemp("onnx") / "run", *layers)


def pictures():
    return [Image.new("RGB", (50 + 9 * k, 40), (40 * k, 90, 200 - 30 * k)) for k in range(5)]


def test_engines_give_what_torch_gives(run, capsys):
    assert cli.main(["export", str(run), "--to", "onnx", "--int8", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    found, system = about["parts"], tuwen.load(run).system
    logits = dict.fromkeys(("image_to_text", "text_to_image"), pytest.approx(1 / float(system.temperature)))
    assert about["final"] == {"score": "fitted", "weight": 0, "first_logit": logits}
    assert set(found) == {f"{part}{end}" for part in ("image", "text", "match") for end in ("", ".int8")}
    assert all(found[part]["difference"] < 1e-4 for part in ("image", "text", "match"))
    want = tuwen.load(run).embed(pictures(), TEXTS)
    for engine in ("onnx", "openvino"):
        got = tuwen.load(run, engine=engine).embed(pictures(), TEXTS, batch_size=2)
        torch.testing.assert_close(got.images, want.images, rtol=0, atol=1e-4)
        torch.testing.assert_close(got.texts, want.texts, rtol=0, atol=1e-4)
    for engine in ("onnx", "openvino"):
        small = tuwen.load(run, engine=engine, int8=True).embed(pictures(), TEXTS)
        assert (small.images * want.images).sum(1).min() > 0.98
        assert (small.texts * want.texts).sum(1).min() > 0.98
        assert not torch.equal(small.images, want.images), "8 bits must differ"
    with pytest.raises(UserError, match="rank needs"):
        tuwen.load(run, engine="onnx").rank(pictures(), TEXTS)


SIGNALS = """
import faulthandler, gc, os, signal, sys
faulthandler.enable()  # signals run on a stack of their own, as under pytest
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
from tuwen.nn.engines import Engine
from pathlib import Path
for _ in range(2):
    engines = [Engine(Path(sys.argv[1]), "openvino") for _ in range(2)]
    while engines:
        del engines[0]
        gc.collect()
        os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_signals_arrive_after_openvino_towers_are_gone(run):
    if not (run / "onnx").exists():
        export_onnx(run)
    ended = subprocess.run([sys.executable, "-c", SIGNALS, str(run)], capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stdout.count("handled")) == (0, 4), ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "system",
    ["clip", "albef", "r2d2", "prd2", "blip", "cookie", "wukong", "tokenflow", "flava", "bridgetower", "ernie_unix2"],
)
def test_every_system_exports_for_any_number_of_rows(system, tmp_path):
    """Some 20 seconds a system, in processes of their own, as the command line runs."""
    run = tmp_path / "run"
    words = f"train {system} --corpus scenes:count=40 --out {run} --size tiny --steps 1"
    for command in (
        [*words.split(), "--set", "train.batch_size=4", "data.workers=0"],
        ["export", str(run), "--to", "onnx"],
    ):
        subprocess.run([sys.executable, "-m", "tuwen", *command], check=True, capture_output=True)
    found = json.loads((run / "onnx" / "export.json").read_text())["parts"]
    assert {"image", "text"} <= set(found)
    assert max(part["difference"] for part in found.values()) < 1e-4


@pytest.mark.slow
def test_a_system_that_reads_spans_is_refused(tmp_path):
    made("bagformer", tmp_path / "run")
    with pytest.raises(UserError, match=r"text of bagformer cannot be exported to ONNX.*without spans"):
        export_onnx(tmp_path / "run")


def test_an_export_of_other_weights_is_refused(run, tmp_path):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(run, other)
    shutil.rmtree(other / "onnx", ignore_errors=True)
    with pytest.raises(UserError, match="no export there"):
        tuwen.load(other, engine="onnx")
    (other / "onnx").mkdir()
    (other / "onnx" / "export.json").write_text('{"weights": "0"}')
    with pytest.raises(UserError, match="other weights"):
        tuwen.load(other, engine="onnx")
    with pytest.raises(UserError, match="no engine 'tensorrt'"):
        tuwen.load(other, engine="tensorrt")
