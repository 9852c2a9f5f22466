"""How fast are vectors of pictures and texts? Writes benchmarks/results/embed_speed.json.

    python benchmarks/embed_speed.py            # some four minutes on two cores, when nothing else runs
    python benchmarks/embed_speed.py --quick    # a small model for a few seconds; shows that it runs

One CLIP (ViT-B/32 and its text transformer, random weights) is written by transformers and imported. From then on all
have the same weights: `Model.embed` of tuwen in float32, bfloat16 and compiled, on onnxruntime and OpenVINO in float32
and 8 bits; transformers' CLIPModel with its processor, and sentence-transformers' `encode`, in float32 and bfloat16.
Each begins with files (JPEG of 640 x 480) or strings and ends with unit vectors, a batch a turn; all take turns in one
process until each has had its seconds, so that a busy moment of the machine hits all alike. Beside the rate stands the
least cosine with transformers' float32 vectors: what a faster form costs.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tokenizers
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from sentence_transformers import SentenceTransformer
from torch import Tensor

import tuwen
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.corpus import all_texts
from tuwen.exchange.importing import import_model
from tuwen.exchange.onnx import export_onnx
from tuwen.training.start import compile_blocks

RESULT = Path(__file__).parent / "results" / "embed_speed.json"
BATCH = {"pictures": 16, "texts": 64}
REFERENCE = "transformers float32"
START, END = "<|startoftext|>", "<|endoftext|>"

Embed = Callable[[list[str]], Tensor]  # unit vectors of paths, or of texts


def written(folder: Path, texts: list[str], quick: bool) -> Path:
    """CLIP with random weights as `save_pretrained` leaves it, its tokenizer trained on the texts."""
    inner = tokenizers.ByteLevelBPETokenizer(lowercase=True)
    inner.train_from_iterator(texts, vocab_size=2000, special_tokens=[START, END], show_progress=False)
    words = inner.get_vocab_size()
    ids = {"bos_token_id": inner.token_to_id(START), "eos_token_id": inner.token_to_id(END)}
    ids["pad_token_id"] = ids["eos_token_id"]
    ends = [(token, inner.token_to_id(token)) for token in (END, START)]
    inner._tokenizer.post_processor = tokenizers.processors.BertProcessing(*ends)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner._tokenizer, bos_token=START, eos_token=END, pad_token=END, unk_token=END
    )
    fast.model_max_length = 77
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    vision = {"image_size": 224, "patch_size": 32} | (size if quick else {})
    text = {"vocab_size": words} | ids | (size if quick else {})
    torch.manual_seed(0)
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision))
    model.save_pretrained(folder)
    transformers.CLIPProcessor(transformers.CLIPImageProcessor(), fast).save_pretrained(folder)
    return folder


def pictures(folder: Path, count: int) -> list[str]:
    """Coarse noise, enlarged, with finer noise over it, as JPEG."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    for k in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        pixels = np.array(coarse.resize((640, 480), Image.Resampling.BICUBIC), dtype=np.int16)
        pixels += generator.integers(-12, 13, pixels.shape, dtype=np.int16)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{k}.jpg", quality=90)
    return [str(folder / f"{k}.jpg") for k in range(count)]


def ours(run: Path, engine: str = "torch", int8: bool = False, half: bool = False, compiled: bool = False):
    model = tuwen.load(run, engine=engine, int8=int8)
    if compiled:
        compile_blocks(model.system, torch.device("cpu"))

    def seen(paths: list[str]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return model.embed(images=paths).images

    def read(texts: list[str]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return model.embed(texts=texts, language="en").texts

    return {"pictures": seen, "texts": read}


def of_transformers(folder: Path, half: bool) -> dict[str, Embed]:
    kind = torch.bfloat16 if half else torch.float32
    model = transformers.CLIPModel.from_pretrained(folder, dtype=kind).eval()
    processor = transformers.CLIPProcessor.from_pretrained(folder)

    def unit(output) -> Tensor:
        output = output if isinstance(output, Tensor) else output.pooler_output
        return F.normalize(output.float(), dim=-1)

    @torch.inference_mode()
    def seen(paths: list[str]) -> Tensor:
        opened = [Image.open(path).convert("RGB") for path in paths]
        pixels = processor(images=opened, return_tensors="pt")["pixel_values"]
        return unit(model.get_image_features(pixel_values=pixels.to(kind)))

    @torch.inference_mode()
    def read(texts: list[str]) -> Tensor:
        inputs = processor(text=texts, return_tensors="pt", padding=True, truncation=True)
        return unit(model.get_text_features(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]))

    return {"pictures": seen, "texts": read}


def of_sentence_transformers(folder: Path, half: bool) -> dict[str, Embed]:
    options = {"dtype": torch.bfloat16 if half else torch.float32}
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs=options)

    def embed(inputs: list) -> Tensor:
        options = {"batch_size": len(inputs), "show_progress_bar": False, "normalize_embeddings": True}
        return model.encode(inputs, convert_to_tensor=True, **options).float()

    def seen(paths: list[str]) -> Tensor:
        return embed([Image.open(path).convert("RGB") for path in paths])

    return {"pictures": seen, "texts": embed}


def contenders(folder: Path, run: Path) -> dict[str, dict[str, Embed]]:
    return {
        REFERENCE: of_transformers(folder, half=False),
        "transformers bfloat16": of_transformers(folder, half=True),
        "sentence-transformers float32": of_sentence_transformers(folder, half=False),
        "sentence-transformers bfloat16": of_sentence_transformers(folder, half=True),
        "tuwen float32": ours(run),
        "tuwen bfloat16": ours(run, half=True),
        "tuwen float32, compiled": ours(run, compiled=True),
        "tuwen onnx": ours(run, "onnx"),
        "tuwen onnx int8": ours(run, "onnx", int8=True),
        "tuwen openvino": ours(run, "openvino"),
        "tuwen openvino int8": ours(run, "openvino", int8=True),
    }


def measured(arms: dict[str, Embed], inputs: list[str], batch: int, seconds: float) -> dict[str, dict[str, float]]:
    """By arm: rows a second (median batch), least cosine with the reference's vectors, batches timed."""
    batches = [inputs[k : k + batch] for k in range(0, len(inputs), batch)]
    vectors = {name: torch.cat([embed(part) for part in batches]) for name, embed in arms.items()}  # and warms up
    taken: dict[str, list[float]] = {name: [] for name in arms}
    turn = 0
    while waiting := [name for name in arms if sum(taken[name]) < seconds]:
        for name in waiting:
            began = time.perf_counter()
            arms[name](batches[turn % len(batches)])
            taken[name].append(time.perf_counter() - began)
        turn += 1
    rates = {name: batch / statistics.median(took) for name, took in taken.items()}
    return {
        name: {
            "per_second": round(rates[name], 2),
            "over_transformers": round(rates[name] / rates[REFERENCE], 2),
            "least_cosine": round(float((vectors[name] * vectors[REFERENCE]).sum(1).min()), 5),
            "batches": len(took),
        }
        for name, took in taken.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model, half a second an arm")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each arm, for pictures and again for texts")
    parser.add_argument("--out", type=Path, default=RESULT, help="file to write")
    args = parser.parse_args()
    seconds = 0.5 if args.quick else args.seconds
    load = list(os.getloadavg())
    scenes = Scenes("train", count=2 * BATCH["texts"], seed=0, side=32)
    texts = [next(iter(all_texts(scenes.record(row)))) for row in range(len(scenes))]
    with tempfile.TemporaryDirectory() as place:
        folder, run = written(Path(place) / "clip", texts, args.quick), Path(place) / "run"
        import_model(str(folder), run)
        export_onnx(run, int8=True)
        inputs = {"pictures": pictures(Path(place) / "pictures", 2 * BATCH["pictures"]), "texts": texts}
        arms = contenders(folder, run)
        figures = {
            what: measured({name: arm[what] for name, arm in arms.items()}, inputs[what], BATCH[what], seconds)
            for what in inputs
        }
    names = ("torch", "tuwen", "transformers", "sentence-transformers", "onnxruntime", "openvino")
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load_before": load,
        },
        "versions": {name: version(name) for name in names} | {"python": platform.python_version()},
        "model": "small" if args.quick else "CLIP ViT-B/32, random weights",
        "batch": BATCH,
        "seconds_an_arm": seconds,
        **figures,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
