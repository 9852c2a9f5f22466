"""Token-wise scores, forward and backward: in blocks, all at once, and one vector a side; seconds and peak memory.

    python benchmarks/token_wise.py --batches 64 128 256 512 [--device cuda] [--tokens 49 --words 32 --width 256]

Every measurement is a process of its own, so that peak memory is its own; the best of at least `--repeats` and two
seconds counts. What would hold more similarities than `--most` at once is not measured all at once.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

WAYS = ("global", "blocks", "at once")
RESULT = Path(__file__).parent / "results" / "token_wise.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--flows", nargs="+", choices=("max", "soft"), default=["max", "soft"])
    parser.add_argument("--tokens", type=int, default=49)
    parser.add_argument("--words", type=int, default=32)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--most", type=int, default=1 << 27, help="similarities that may be held at once")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", nargs=3, metavar=("WAY", "FLOW", "BATCH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        print(json.dumps(measure(args, args.one[0], args.one[1], int(args.one[2]))))
        return
    rows = []
    for flow in args.flows:
        for batch in args.batches:
            row = {"flow": flow, "batch": batch}
            for way in WAYS:
                if way == "at once" and batch * batch * args.tokens * args.words > args.most:
                    continue
                row[way] = in_a_process(args, way, flow, batch)
            rows.append(row)
            print(line_of(row), flush=True)
    machine = {
        "machine": platform.processor() or platform.machine(),
        "threads": args.threads,
        "torch": torch.__version__,
    }
    if args.device == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    result = {"command": " ".join(sys.argv), **machine, "tokens": args.tokens, "words": args.words, "width": args.width}
    RESULT.write_text(json.dumps({**result, "found": rows}, indent=1) + "\n")


def in_a_process(args, way: str, flow: str, batch: int) -> dict:
    sizes = [f"--{name}={getattr(args, name)}" for name in ("tokens", "words", "width", "repeats", "device", "threads")]
    command = [sys.executable, __file__, *sizes, "--one", way, flow, str(batch)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(args, way: str, flow: str, batch: int) -> dict:
    """Best seconds of a forward and backward pass, and the MiB that the passes took beyond what was there before."""
    from tuwen.nn.encoded import Encoded
    from tuwen.similarity.flows import MaxFlow, SoftFlow
    from tuwen.similarity.token_wise import token_scores

    draw = torch.Generator().manual_seed(0)

    def side(count: int) -> Encoded:
        tokens = torch.nn.functional.normalize(torch.randn(batch, count, args.width, generator=draw), dim=-1)
        real = torch.arange(count) < torch.randint(8, count + 1, (batch, 1), generator=draw)
        tokens, whole = (x.to(args.device).requires_grad_() for x in (tokens, tokens.mean(1)))
        return Encoded(whole, tokens, real.to(args.device))

    images, texts = side(args.tokens), side(args.words)
    images = Encoded(images.pooled, images.tokens)
    how = MaxFlow() if flow == "max" else SoftFlow()
    weights = torch.randn(2, batch, batch, generator=draw).to(args.device)
    before = mib_in_use(args.device)
    seconds = []
    while len(seconds) < args.repeats or sum(seconds) < 2.0:
        start = time.perf_counter()
        if way == "global":
            cosine = images.pooled @ texts.pooled.T
            scores = cosine, cosine
        elif way == "blocks":
            scores = token_scores(images, texts, how)
        else:
            scores = token_scores(images, texts, how, budget=1 << 62)
        sum((score * weight).sum() for score, weight in zip(scores, weights, strict=True)).backward()
        if args.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {"seconds": round(min(seconds), 4), "mib": round(mib_in_use(args.device) - before, 1)}


def mib_in_use(device: str) -> float:
    """Peak MiB so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def line_of(row: dict) -> str:
    cells = [f"{way} {row[way]['seconds']:.3f} s, {row[way]['mib']:.0f} MiB" for way in WAYS if way in row]
    if "at once" in row:
        cells.append(f"at once / blocks {row['at once']['seconds'] / row['blocks']['seconds']:.2f}")
    return f"{row['flow']} {row['batch']}: " + "; ".join(cells)


if __name__ == "__main__":
    main()
