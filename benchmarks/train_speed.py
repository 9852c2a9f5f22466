"""Is a training step as fast as it should be? Writes benchmarks/results/train_speed.json.

    python benchmarks/train_speed.py              # about ten minutes on two cores, when nothing else runs
    python benchmarks/train_speed.py --quick      # a minute or two, small batches, noisy
    python benchmarks/train_speed.py --compile    # also against torch.compile, which takes minutes to warm up

One step of `clip` (tuwen's own `train_step`: forward, backward, clipping, finite check, AdamW) against transformers'
CLIPModel of the same shape (forward with its loss, backward, the same clipping, torch's AdamW), in its defaults (SDPA
attention) and with its best flags (eager attention, fused AdamW; compiled where asked, and then ours compiled too). All
stand in one process and
take a step in turn, the order turning too, so that a busy moment of the machine hits all alike; a ratio is the median
over rounds of the other's seconds over ours in the same round. Ours is given bytes and normalises them in the step;
the other is given normalised floats. Pairs a second are of the median step.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
import transformers

from tuwen.data.batch import Batch, Images, Texts
from tuwen.data.text import Vocabulary
from tuwen.nn.initial import initialise
from tuwen.nn.sizes import ImageTowerConfig, TextTowerConfig
from tuwen.nn.towers import CLIP_MEAN, CLIP_STD
from tuwen.systems.clip import CLIP, CLIPConfig
from tuwen.systems.system import Progress
from tuwen.training import optim
from tuwen.training.config import TrainConfig
from tuwen.training.start import compile_blocks
from tuwen.training.step import train_step

RESULT = Path(__file__).parent / "results" / "train_speed.json"
GOALS = {"defaults": 1.2, "best_flags": 1.0}
EPS, ACTIVATION = 1e-5, "quick_gelu"


@dataclass(frozen=True)
class Shape:
    """(width, layers, heads) of each tower, pixels, tokens, words, shared width, and the batch to take."""

    image: tuple[int, int, int]
    side: int
    patch: int
    text: tuple[int, int, int]
    length: int
    words: int
    embed: int
    batch: int
    quick_batch: int


SHAPES = {
    "tiny": Shape((192, 6, 3), 112, 16, (192, 4, 3), 32, 8192, 512, batch=256, quick_batch=32),
    "vit-b/32": Shape((768, 12, 12), 224, 32, (512, 12, 8), 77, 49408, 512, batch=16, quick_batch=4),
}

Step = Callable[[], float]


def example(shape: Shape, rows: int) -> Batch:
    """Noise pictures, and texts of half to full length that end with the last word of the vocabulary."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (rows, 3, shape.side, shape.side), dtype=torch.uint8, generator=generator)
    ids = torch.randint(5, shape.words - 2, (rows, shape.length), generator=generator)
    counts = torch.randint(shape.length // 2, shape.length + 1, (rows,), generator=generator)
    counts[0] = shape.length
    mask = torch.arange(shape.length) < counts[:, None]
    ids = ids.masked_fill(~mask, 0)
    ids[torch.arange(rows), counts - 1] = shape.words - 1
    places = torch.arange(rows)
    return Batch(Images(pixels), Texts(ids, mask, torch.zeros_like(places)), places, places, places)


def ours(shape: Shape, batch: Batch, precision: str, compiled: bool = False) -> tuple[Step, int]:
    (width, layers, heads), (text_width, text_layers, text_heads) = shape.image, shape.text
    image = ImageTowerConfig(shape.side, shape.patch, width, layers, heads, "class", ACTIVATION, True, eps=EPS)
    text = TextTowerConfig("clip", shape.length, text_width, text_layers, text_heads, ACTIVATION, EPS)
    vocabulary = Vocabulary(shape.words, pad=0, unknown=1, cls=2, sep=3, mask=4)
    system = CLIP(CLIPConfig(image, text, shape.embed), vocabulary)
    initialise(system, 0)
    if compiled:
        compile_blocks(system, torch.device("cpu"))
    config = TrainConfig(batch_size=len(batch), steps=1000, precision=precision)
    optimizer, schedule = optim.build_optimizer(system, config), optim.schedule(config, 1000)
    progress = Progress(100, 100, 1000, len(batch))
    system.train()

    def step() -> float:
        return train_step(system, system, [batch], optimizer, schedule, progress, config).loss

    return step, sum(p.numel() for p in system.parameters())


def peer(shape: Shape, batch: Batch, precision: str, attention: str, fused: bool, compiled: bool) -> tuple[Step, int]:
    """A step of transformers' CLIPModel."""

    def tower(width: int, layers: int, heads: int) -> dict:
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": shape.embed}
        return sizes | {"num_hidden_layers": layers, "num_attention_heads": heads}

    text = {"vocab_size": shape.words, "max_position_embeddings": shape.length, "pad_token_id": 0}
    text |= {"bos_token_id": 2, "eos_token_id": shape.words - 1}
    vision = {"image_size": shape.side, "patch_size": shape.patch}
    config = transformers.CLIPConfig(
        text_config=tower(*shape.text) | text, vision_config=tower(*shape.image) | vision, projection_dim=shape.embed
    )
    config._attn_implementation = attention
    model = transformers.CLIPModel(config).train()
    assert model.config._attn_implementation == attention
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (CLIP_MEAN, CLIP_STD))
    inputs = {"input_ids": batch.texts.ids, "attention_mask": batch.texts.mask.long()}
    inputs["pixel_values"] = (batch.images.pixels.float() / 255 - mean) / std
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=5e-4, weight_decay=0.05, betas=(0.9, 0.98), fused=fused or None)
    called = torch.compile(model) if compiled else model

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = called(**inputs, return_loss=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        return float(loss.detach())

    return step, sum(p.numel() for p in model.parameters())


def contenders(shape: Shape, batch: Batch, precision: str, compiled: bool) -> dict[str, tuple[Step, int]]:
    made = {
        "tuwen": ours(shape, batch, precision),
        "transformers defaults": peer(shape, batch, precision, "sdpa", fused=False, compiled=False),
        "transformers eager, fused AdamW": peer(shape, batch, precision, "eager", fused=True, compiled=False),
    }
    if compiled:
        made["tuwen, compiled"] = ours(shape, batch, precision, compiled=True)
        for attention in ("sdpa", "eager"):
            name = f"transformers {attention}, fused AdamW, compiled"
            made[name] = peer(shape, batch, precision, attention, fused=True, compiled=True)
    return made


def seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def in_turn(steps: dict[str, Step], rounds: int, warm: int) -> dict[str, list[float]]:
    """Seconds of every step of every contender; round k starts with another of them."""
    for step in steps.values():
        for _ in range(warm):
            step()
    names, taken = list(steps), {name: [] for name in steps}
    for k in range(rounds):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            taken[name].append(seconds(steps[name]))
    return taken


def measure(name: str, precision: str, rows: int, rounds: int, compiled: bool) -> dict:
    torch.compiler.reset()
    shape = SHAPES[name]
    batch = example(shape, rows)
    made = contenders(shape, batch, precision, compiled)
    taken = in_turn({key: step for key, (step, _) in made.items()}, rounds, warm=2)
    mine = taken["tuwen"]
    figures: dict = {"shape": name, "precision": precision, "batch": rows, "rounds": rounds, "contenders": {}}
    for key, times in taken.items():
        ratios = [other / own for other, own in zip(times, mine, strict=True)]
        figures["contenders"][key] = {
            "parameters": made[key][1],
            "pairs_per_second": round(rows / statistics.median(times), 2),
            "ours_over_it": round(statistics.median(ratios), 3),
            "ratio_least_most": [round(min(ratios), 3), round(max(ratios), 3)],
            "seconds": [round(x, 4) for x in times],
        }
    medians = {key: statistics.median(times) for key, times in taken.items()}
    best = min((key for key in medians if key.startswith("transformers")), key=medians.__getitem__)
    own = min((key for key in medians if key.startswith("tuwen")), key=medians.__getitem__)
    figures["against_defaults"] = figures["contenders"]["transformers defaults"]["ours_over_it"]
    figures["against_best_flags"] = {
        "ours": own,
        "its": best,
        "ratio": round(statistics.median(b / a for a, b in zip(taken[own], taken[best], strict=True)), 3),
    }
    return figures


def show(figures: dict) -> None:
    print(f"\n{figures['shape']}  {figures['precision']}  batch {figures['batch']}  {figures['rounds']} rounds")
    for key, contender in figures["contenders"].items():
        low, high = contender["ratio_least_most"]
        rate, ratio = contender["pairs_per_second"], contender["ours_over_it"]
        print(f"  {key:45s} {rate:9.2f} pairs/s   ours/its {ratio:.2f} ({low}-{high})")


def machine() -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "load_before": [round(x, 2) for x in os.getloadavg()],
    }


def commit() -> str | None:
    answer = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small batches, few rounds")
    parser.add_argument("--compile", action="store_true", help="also against torch.compile")
    parser.add_argument("--shape", choices=SHAPES, action="append", help="one shape alone (may be repeated)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), action="append")
    parser.add_argument("--rounds", type=int, help="rounds of one step each (default 12; 3 when quick)")
    parser.add_argument("--batch", type=int, help="pairs a step, for every shape")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help=f"default {RESULT}, or nothing when quick")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    rounds = arguments.rounds or (3 if arguments.quick else 12)
    packages = {name: version(name) for name in ("torch", "transformers", "tuwen")}
    result = {"machine": machine(), "versions": packages | {"python": platform.python_version()}, "commit": commit()}
    result |= {"command": " ".join(["python", *sys.argv]), "goals": GOALS, "measured": []}
    for name in arguments.shape or SHAPES:
        for precision in arguments.precision or ("float32", "bfloat16"):
            rows = arguments.batch or (SHAPES[name].quick_batch if arguments.quick else SHAPES[name].batch)
            result["measured"].append(measure(name, precision, rows, rounds, arguments.compile))
            show(result["measured"][-1])
    out = arguments.out or (None if arguments.quick else RESULT)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"\nwritten to {out}")


if __name__ == "__main__":
    main()
