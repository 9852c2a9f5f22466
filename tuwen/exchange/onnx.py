"""`tuwen export --to onnx`: image tower, text tower, re-ranker as ONNX, each compared with torch when written."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tuwen.data.batch import Images, Texts
from tuwen.errors import UserError
from tuwen.model import load
from tuwen.nn.encoded import Encoded
from tuwen.nn.engines import ABOUT, FOLDER, weights_digest
from tuwen.predictor import Predictor, match_of
from tuwen.run import WEIGHTS
from tuwen.tasks.metrics import DIRECTIONS
from tuwen.training import checkpoint

LARGEST = 1e-4  # most that a float32 export may differ from torch
ROWS = (1, 3)  # batches it is compared on, other than the one it is traced with
SPEED_ROWS = 8


class ImagePart(nn.Module):
    """First-stage vectors [B, D] of pixels [B, 3, H, W] uint8."""

    def __init__(self, system: Any):
        super().__init__()
        self.system = system

    def forward(self, pixels: Tensor) -> Tensor:
        return self.system.encode_images(Images(pixels)).pooled


class TextPart(nn.Module):
    """First-stage vectors [B, D] of ids and mask [B, L]."""

    def __init__(self, system: Any):
        super().__init__()
        self.system = system

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.system.encode_texts(Texts(ids, mask, torch.zeros_like(ids[:, 0]))).pooled


class MatchPart(nn.Module):
    """Log-odds [B, H] of pairs from what an index keeps: tokens, and states with their mask."""

    def __init__(self, system: Any):
        super().__init__()
        self.system = system

    def forward(self, tokens: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        images, texts = Encoded(states={"last": tokens}), Encoded(states={"last": states}, state_mask=mask)
        return match_of(self.system, images, texts)


def export_onnx(run: str | Path, int8: bool = False) -> dict[str, Any]:
    """Writes RUN/onnx and gives what is in export.json: by part the greatest difference from torch, and speeds.

    int8: beside each part a copy with 8-bit weights (onnxruntime's dynamic quantisation), measured as well.

    Raises:
        UserError: packages missing, no first-stage vectors, or an export that differs from torch.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is missing: pip install 'tuwen[onnx]'") from None
    model = load(run)
    folder = Path(run) / FOLDER
    folder.mkdir(exist_ok=True)
    about: dict[str, Any] = {"weights": weights_digest(Path(run) / WEIGHTS), "parts": {}, **_score(model.predictor)}
    for name, part, inputs in _parts(model.predictor):
        try:
            part(**inputs(1))
        except UserError as error:  # a text tower that needs spans, of which ONNX's inputs know nothing
            raise UserError(f"{name} of {model.config.system} cannot be exported to ONNX: {error}") from None
        path = folder / f"{name}.onnx"
        _write(part, inputs(2), path, model.config.model.text.length)
        about["parts"][name] = _compared(part, inputs, path, LARGEST)
        if int8:
            small = folder / f"{name}.int8.onnx"
            _quantise(path, small)
            about["parts"][f"{name}.int8"] = _compared(part, inputs, small, float("inf"))
    checkpoint.write(folder / ABOUT, json.dumps(about, indent=1) + "\n")
    return about


def _score(predictor: Predictor) -> dict[str, Any]:
    """How a server makes final scores of the "match" part's log-odds: the rule, and what a first-stage score of 1 is as
    a logit for queries of either kind."""
    if not predictor.system.matches():
        return {}
    with torch.no_grad():
        logits = {way: float(predictor.system.first_logit(torch.ones(()), way)) for way in DIRECTIONS}
    return {"final": predictor.score_rule() | {"first_logit": logits}}


Inputs = Callable[[int], dict[str, Tensor]]


def _parts(predictor: Predictor) -> list[tuple[str, nn.Module, Inputs]]:
    """Each part with inputs of so many rows."""
    side, words, system = predictor.fit.side, predictor.tokenizer.vocabulary, predictor.system

    def pixels(rows: int) -> dict[str, Tensor]:
        drawn = torch.Generator().manual_seed(rows)
        return {"pixels": torch.randint(0, 256, (rows, 3, side, side), dtype=torch.uint8, generator=drawn)}

    def texts(rows: int) -> dict[str, Tensor]:
        length = min(8 * (rows + 1), predictor.config.text.length)
        drawn = torch.Generator().manual_seed(rows)
        ids = torch.randint(0, words.size, (rows, length), generator=drawn)
        counts = torch.randint(3, length + 1, (rows,), generator=drawn)
        mask = torch.arange(length) < counts[:, None]
        return {"ids": ids.masked_fill(~mask, words.pad), "mask": mask}

    parts: list[tuple[str, nn.Module, Inputs]] = [
        ("image", ImagePart(system), pixels),
        ("text", TextPart(system), texts),
    ]
    if system.matches() and set(system.index_fields) <= {"pooled", "states.last"}:

        def pairs(rows: int) -> dict[str, Tensor]:
            read = texts(rows)
            images = predictor.encode(Images(pixels(rows)["pixels"]))
            sentences = predictor.encode(Texts(read["ids"], read["mask"], torch.zeros(rows, dtype=torch.int64)))
            states, mask = sentences.states["last"], sentences.state_mask
            assert mask is not None
            return {"tokens": images.states["last"], "states": states, "mask": mask}

        parts.append(("match", MatchPart(system), pairs))
    return parts


def _write(part: nn.Module, inputs: dict[str, Tensor], path: Path, longest: int) -> None:
    """For any number of rows, and texts of 3 to `longest` tokens."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    length = torch.export.Dim("length", min=3, max=longest)
    shapes: dict[str, Any] = {name: {0: batch} for name in inputs}
    for name in ("ids", "mask", "states"):
        if name in inputs:
            shapes[name] = {0: batch, 1: length if "ids" in inputs else torch.export.Dim.AUTO}
    # exported here: left to itself, torch.onnx falls back to the sizes of the example where these shapes do not hold
    exported = torch.export.export(part.eval(), (), inputs, dynamic_shapes=shapes, strict=False)
    program = torch.onnx.export(exported, input_names=list(inputs), dynamo=True, verbose=False)
    assert program is not None
    program.save(path)


def _compared(part: nn.Module, inputs: Inputs, path: Path, largest: float) -> dict[str, float]:
    """The greatest difference over batches of other sizes, and rows a second of both.

    Raises:
        UserError: more than `largest`, or the export does not run on them.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(values: dict[str, Tensor]) -> Tensor:
        return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in values.items()})[0])

    worst = 0.0
    with torch.no_grad():
        for rows in ROWS:
            values = inputs(rows)
            worst = max(worst, float((run(values) - part(**values)).abs().max()))
        if not worst <= largest:
            path.unlink()
            raise UserError(f"{path.name} differs from torch by {worst:.2g}, more than {largest:g}; it was removed")
        values = inputs(SPEED_ROWS)
        torch_rate, onnx_rate = _rate(lambda: part(**values)), _rate(lambda: run(values))
    return {"difference": worst, "torch_per_second": torch_rate, "onnx_per_second": onnx_rate}


def _rate(step: Callable[[], Any]) -> float:
    """Rows a second, the best of three."""
    step()
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return round(SPEED_ROWS / min(seconds), 2)


def _quantise(path: Path, small: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(path), str(small), weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
