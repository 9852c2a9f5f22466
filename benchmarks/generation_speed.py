"""What the key-value cache saves in generation. Writes benchmarks/results/generation_speed.json.

    python benchmarks/generation_speed.py            # a minute or two on two cores
    python benchmarks/generation_speed.py --quick    # a smaller decoder

The same decoder with random weights says `WORDS` words for each row of a batch, greedily and by beam search, with its
cache and by reading everything anew for each word, in turn in one process; the texts are the same, which is checked.
A ratio is the median over rounds of the uncached seconds over the cached ones of the same round.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

from tuwen.data.text import Vocabulary
from tuwen.nn.decoder import CausalDecoder, Speaker
from tuwen.nn.generation import Generation, generate
from tuwen.nn.initial import initialise
from tuwen.nn.sizes import CrossEncoderConfig

RESULT = Path(__file__).parent / "results" / "generation_speed.json"
WORDS, MEMORY, ROUNDS = 30, 197, 3
VOCABULARY = Vocabulary(size=8000, pad=0, unknown=1, cls=2, sep=3, mask=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="width 128, 2 layers, in place of 384 and 4")
    parser.add_argument("--out", type=Path, default=RESULT, help="file to write")
    args = parser.parse_args()
    width, layers, rows = (128, 2, 16) if args.quick else (384, 4, 16)
    decoder = CausalDecoder(CrossEncoderConfig(width, layers, width // 32), width, VOCABULARY.size, WORDS + 2, 1).eval()
    initialise(decoder, 0)
    with torch.no_grad():
        decoder.bias[VOCABULARY.sep] = -1e3  # no text ends early
    generator = torch.Generator().manual_seed(0)
    embedded = torch.randn(VOCABULARY.size, width, generator=generator)
    memory = torch.randn(rows, MEMORY, width, generator=generator)
    measured = {}
    for how in (Generation("greedy"), Generation("beam", 5)):
        seconds: dict[bool, list[float]] = {True: [], False: []}
        texts = {}
        for round_ in range(ROUNDS):
            for cached in (True, False) if round_ % 2 else (False, True):
                speaker = Speaker(decoder, embedded, torch.zeros(rows, dtype=torch.int64), memory, None, cached)
                began = time.perf_counter()
                texts[cached] = generate(speaker, VOCABULARY, how).ids
                seconds[cached].append(time.perf_counter() - began)
        ratios = [slow / fast for slow, fast in zip(seconds[False], seconds[True], strict=True)]
        measured[how.method] = {
            "cached_seconds": statistics.median(seconds[True]),
            "uncached_seconds": statistics.median(seconds[False]),
            "ratio": statistics.median(ratios),
            "ratio_least_most": [min(ratios), max(ratios)],
            "same_texts": torch.equal(texts[True], texts[False]),
        }
    figures = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load_before": list(os.getloadavg()),
        },
        "versions": {name: version(name) for name in ("torch", "tuwen")} | {"python": platform.python_version()},
        "command": " ".join(["python", *sys.argv]),
        "decoder": {"width": width, "layers": layers, "rows": rows, "words": WORDS, "memory": MEMORY},
        "measured": measured,
    }
    args.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
