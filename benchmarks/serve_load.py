"""Load on `tuwen serve`: latency, throughput and memory with 1, 8 and 64 clients, over loopback.

    python benchmarks/serve_load.py                      # a small r2d2 of random weights over 2,000 scenes, 60 s each
    python benchmarks/serve_load.py --index goods.index  # an index of your own

Each client sends a text, waits for the answer, and sends the next; a 429 is counted apart and waited out as it says.
Clients run in a process of their own, on the same machine: they take part of the processor that they measure.
"""

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import httpx
import numpy as np

RESULT = Path(__file__).parent / "results" / "serve_load.json"
SCENES = "scenes:count=3000"


def build(folder: Path, pictures: int, size: str) -> Path:
    """An index of scenes by a run of random weights."""
    from tuwen.data.images import encode_jpeg
    from tuwen.data.open import open_corpus
    from tuwen.search.build import build_index
    from tuwen.search.pictures import Picture
    from tuwen.training.config import RunConfig
    from tuwen.training.loop import train

    changes = {"train.steps": 1, "train.batch_size": 8, "data.workers": 0}
    run = train(RunConfig.of("r2d2", size, SCENES, changes=changes), folder / "run", quiet=True)
    corpus = open_corpus(SCENES, "train")
    records = ((row, corpus.record(row)) for row in range(pictures))
    build_index(
        run,
        [Picture(encode_jpeg(corpus.image(row)), record.id, record.texts) for row, record in records],
        folder / "index",
    )
    return folder / "index"


def queries(count: int) -> list[str]:
    """Captions of scenes, half of them Chinese, no two the same."""
    from tuwen.data.open import open_corpus

    corpus = open_corpus(SCENES, "train")
    return [corpus.record(row).texts[("zh", "en")[row % 2]][0] for row in range(count)]


class Load:
    """What clients saw: seconds of each answer by status, and the service's memory over time."""

    def __init__(self, url: str, texts: list[str]):
        self.url, self.texts = url, texts
        self.seconds: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.memory: list[float] = []

    async def run(self, clients: int, seconds: float) -> None:
        limits = httpx.Limits(max_connections=clients + 1, max_keepalive_connections=clients + 1)
        async with httpx.AsyncClient(base_url=self.url, timeout=120, limits=limits) as http:
            end = time.perf_counter() + seconds
            watch = asyncio.create_task(self._watch(http))
            await asyncio.gather(*(self._client(http, number, clients, end) for number in range(clients)))
            watch.cancel()

    async def _client(self, http: httpx.AsyncClient, number: int, clients: int, end: float) -> None:
        turn = number
        while time.perf_counter() < end:
            began = time.perf_counter()
            try:
                answer = await http.post("/search", json={"text": self.texts[turn % len(self.texts)]})
            except httpx.HTTPError as error:
                self.statuses[type(error).__name__] += 1
                continue
            turn += clients
            self.statuses[str(answer.status_code)] += 1
            if answer.status_code == 200:
                self.seconds.append(time.perf_counter() - began)
            elif answer.status_code == 429:
                await asyncio.sleep(float(answer.headers["Retry-After"]))

    async def _watch(self, http: httpx.AsyncClient) -> None:
        while True:
            lines = (await http.get("/metrics")).text.splitlines()
            value = next(line for line in lines if line.startswith("process_resident_memory_bytes"))
            self.memory.append(float(value.split()[1]) / 2**20)
            await asyncio.sleep(2)

    def report(self, clients: int, seconds: float) -> dict:
        p50, p95, p99 = (round(1000 * float(np.quantile(self.seconds, q)), 1) for q in (0.5, 0.95, 0.99))
        third = max(1, len(self.memory) // 3)
        return {
            "clients": clients,
            "seconds": seconds,
            "answers_per_second": round(len(self.seconds) / seconds, 2),
            "ms": {"p50": p50, "p95": p95, "p99": p99},
            "answers": self.statuses["200"],
            "refused_429": self.statuses["429"],
            "errors": {name: count for name, count in self.statuses.items() if name not in ("200", "429")},
            "memory_mb": {
                "first_third": round(float(np.mean(self.memory[:third])), 1),
                "last_third": round(float(np.mean(self.memory[-third:])), 1),
                "most": round(max(self.memory), 1),
            },
        }


def measure(index: Path, options) -> dict:
    """Starts the service, loads it with each number of clients in turn, and stops it."""
    words = [
        sys.executable,
        "-m",
        "tuwen",
        "serve",
        str(index),
        "--no-keys",
        "--port",
        "0",
        "--queue",
        str(options.queue),
    ]
    words += ["--budget-ms", str(options.budget_ms)] if options.budget_ms else []
    texts = queries(1000)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            started = process.stdout.readline()
            if not started:
                sys.exit("the service did not start; run the same command by hand: " + " ".join(words))
            url = started.split()[0]
            asyncio.run(Load(url, texts).run(2, 3))  # warm
            runs = []
            for clients in options.clients:
                load = Load(url, texts)
                asyncio.run(load.run(clients, options.seconds))
                runs.append(load.report(clients, options.seconds))
                print(json.dumps(runs[-1]), flush=True)
            process.terminate()
            return {"service": started.strip(), "runs": runs, "exit_status": process.wait(60)}
        finally:
            process.kill()


def hardware() -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    packages = ("torch", "fastapi", "uvicorn", "pylance", "httpx")
    return {"processor": model, "cores": os.cpu_count(), "python": platform.python_version()} | {
        name: version(name) for name in packages
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--index", type=Path, help="made by `tuwen index` (default: scenes, random weights)")
    parser.add_argument("--size", default="small", help="of the model of random weights (default small)")
    parser.add_argument("--pictures", type=int, default=2000, help="in the index of scenes (default 2000)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=60, help="for each number of clients (default 60)")
    parser.add_argument("--queue", type=int, default=128, help="searches that may wait")
    parser.add_argument("--budget-ms", type=int, help="time of a search")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    result = {"hardware": hardware(), "command": " ".join(["python", *sys.argv])}
    with tempfile.TemporaryDirectory() as folder:
        index = options.index or build(Path(folder), options.pictures, options.size)
        about = {"size": options.size, "weights": "random"} if options.index is None else {"index": str(options.index)}
        result |= {"about": about} | measure(index, options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
