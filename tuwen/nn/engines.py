"""Towers exported to ONNX, run by onnxruntime or OpenVINO in place of torch."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tuwen.data.batch import Images, Texts
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.run import WEIGHTS

FOLDER, ABOUT = "onnx", "export.json"
ENGINES = ("onnx", "openvino")


class Engine:
    """The first-stage vectors of a run by its exported towers; `int8` takes the quantised ones."""

    def __init__(self, run: Path, name: str, int8: bool = False):
        """
        Raises:
            UserError: an unknown engine, its package missing, or no export of these very weights.
        """
        folder = run / FOLDER
        if name not in ENGINES:
            raise UserError(f"no engine {name!r}; choose torch, {' or '.join(ENGINES)}")
        if not (folder / ABOUT).exists():
            raise UserError(f"{folder}: no export there; make it with `tuwen export {run} --to onnx`")
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if about["weights"] != weights_digest(run / WEIGHTS):
            raise UserError(f"{folder}: is of other weights than the run's now; `tuwen export {run} --to onnx` again")
        end = ".int8.onnx" if int8 else ".onnx"
        if int8 and not (folder / f"image{end}").exists():
            raise UserError(f"{folder}: no int8 towers there; export with --int8")
        open_one = _onnx if name == "onnx" else _openvino
        self._image, self._text = open_one(folder / f"image{end}"), open_one(folder / f"text{end}")

    def encode_images(self, images: Images) -> Encoded:
        """pooled [B, D] of one picture a row."""
        assert images.pixels is not None
        return Encoded(self._image({"pixels": images.pixels.cpu().numpy()}))

    def encode_texts(self, texts: Texts) -> Encoded:
        """pooled [B, D] of one text a row."""
        return Encoded(self._text({"ids": texts.ids.cpu().numpy(), "mask": texts.mask.cpu().numpy()}))


def _onnx(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UserError("engine onnx needs onnxruntime: pip install 'tuwen[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(np.array(session.run(None, inputs)[0]))


def _openvino(path: Path) -> Any:
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = _openvino_core().compile_model(str(path), "CPU", settings)
    return lambda inputs: torch.from_numpy(np.array(compiled(inputs)[0]))


@cache
def _openvino_core() -> Any:
    """The one that all towers share, kept as long as the process.

    Its CPU plugin gives the thread an alternate signal stack. Where a second core goes after the first, it puts the
    first's back, whose memory is gone, and the next signal (of a loader's child that ends) takes the process down.
    """
    try:
        import openvino
    except ImportError:
        raise UserError("engine openvino needs openvino: pip install 'tuwen[openvino]'") from None
    return openvino.Core()


def weights_digest(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
