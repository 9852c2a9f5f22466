"""What a run writes down: metrics.jsonl as the record, TensorBoard events, a progress line, and where it came from."""

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import tuwen
from tuwen.data.corpus import Corpus
from tuwen.errors import UserError, quoted, reason_of
from tuwen.run import EVENTS, METRICS
from tuwen.speech import spoken
from tuwen.training import checkpoint

PACKAGES = ("torch", "numpy", "pillow", "simplejpeg", "tokenizers", "safetensors", "pyarrow")
NOTHING = 0.02  # least gain of a matching that has learnt anything, see `tuwen.objectives.matching.matching_gain`
NOTHING_LEARNT = (
    "its matching ended within 2 % of what guessing gives: the cross encoder has learnt nothing, and is not re-ranked"
)
MUCH = 0.25  # of the time: what is waited for so long is what limits
_MEND = "restore the file, or take the line out"
PLAIN_SECONDS = 10.0  # between progress lines where standard error is no terminal


class MetricsLog:
    """metrics.jsonl and TensorBoard: one line a step that is logged, rising, no step twice.

    A line has "step" (optimizer steps done; 0 is the start), "loss", "losses", "metrics", "lr", "grad_norm",
    "epoch", "pairs_per_second", "data_wait" and "core_wait" (shares of the time: for a batch, for a core that other
    programs had), "memory_mb", "seconds"; and "eval" where the system was evaluated after that step.
    """

    def __init__(self, run: Path, step: int):
        """step: where the run goes on; lines of later steps, and a half-written one, are removed."""
        from torch.utils.tensorboard import SummaryWriter  # half a second that only training needs

        self.path = run / METRICS
        self.last: dict[str, Any] = {}
        records = [record for record in read_metrics(self.path) if record["step"] <= step]
        checkpoint.write(self.path, "".join(map(_line, records)))
        if records:
            self.last = records[-1]
        self.events = SummaryWriter(str(run / EVENTS), purge_step=step + 1 if records else None)

    def write(self, record: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(_line(record))
        self.last = record
        self._events(record)

    def evaluated(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds an evaluation to the step's line."""
        record = (self.last if self.last.get("step") == step else {"step": step}) | {"eval": dict(values)}
        others = [other for other in read_metrics(self.path) if other["step"] < step]
        checkpoint.write(self.path, "".join(map(_line, [*others, record])))
        self.last = record
        self._events({"step": step, "eval": dict(values)})

    def has_evaluation(self, step: int) -> bool:
        return self.last.get("step") == step and "eval" in self.last

    def close(self) -> None:
        self.events.close()

    def _events(self, record: Mapping[str, Any]) -> None:
        for name, value in _flat(record):
            if name != "step":
                self.events.add_scalar(name, value, record["step"])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, without a last line that a crash cut short.

    Raises:
        UserError: if any other line is no record of a step, or its step is not above that of the line before.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # with no line end behind it
                break
            raise UserError(f"{path}, line {number}: no valid JSON ({reason_of(error)}); {_MEND}") from None
        if not _is_record(record) or (records and record["step"] <= records[-1]["step"]):
            raise UserError(f"{path}, line {number}: no record of a later step ({quoted(record, 80)}); {_MEND}")
        records.append(record)
    return records


def _is_record(value: Any) -> bool:
    """Whether a value is of the form that `Metrics` writes, as far as anything reads it."""
    if not isinstance(value, dict) or type(value.get("step")) is not int or not 0 <= value["step"] < 2**63:
        return False
    parts = [value.get(name, {}) for name in ("losses", "metrics", "eval")]
    if not all(isinstance(part, dict) for part in parts):
        return False
    plain = [number for name, number in value.items() if name not in ("losses", "metrics", "eval")]
    return all(_is_number(number) for number in (*plain, *parts[0].values(), *parts[1].values()))


def _is_number(value: Any) -> bool:
    """Of a record: null stands for one that JSON cannot hold."""
    return value is None or (isinstance(value, int | float) and abs(value) < 1.8e308)


def learnt_nothing(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a run's matching ended within 2 % of the loss of who guesses by the shares of its labels."""
    gains = [record["metrics"]["matching_gain"] for record in records if "matching_gain" in record.get("metrics", {})]
    last = [gain for gain in gains[-10:] if gain is not None]
    return bool(last) and sum(last) / len(last) < NOTHING


def queue_note(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """A line where the contrast begins to read a queue between two records; else nothing."""
    keys = [record.get("metrics", {}).get("queued_keys", 0) or 0 for record in (before, now)]
    if keys[0] or not keys[1]:
        return ""
    return (
        f"step {now['step']}: the contrast now has {keys[1]:.0f} queued keys beside its batch; its loss jumps, for "
        "there is more to choose from, and nothing diverges"
    )


class Rates:
    """Pairs per second, shares of the time waiting for data and for a core, and memory, since they were last read."""

    def __init__(self, seconds: float):
        """seconds: trained so far, before a resume."""
        self.seconds = seconds
        self.waited = self.crowded = self.spent = 0.0
        self.pairs = 0
        self.latest: dict[str, float] = {}

    def step(self, waited: float, computed: float, crowded: float, pairs: int) -> None:
        """waited, computed: seconds for the batch, and after it; crowded: of these, those without a core."""
        self.waited += waited
        self.crowded += crowded
        self.spent += waited + computed
        self.seconds += waited + computed
        self.pairs += pairs

    def read(self) -> dict[str, float]:
        spent = max(self.spent, 1e-9)
        self.latest = {
            "pairs_per_second": round(self.pairs / spent, 2),
            "data_wait": round(self.waited / spent, 4),
            "core_wait": round(self.crowded / spent, 4),
            "memory_mb": round(memory_mb(), 1),
            "seconds": round(self.seconds, 3),
        }
        self.waited = self.crowded = self.spent = 0.0
        self.pairs = 0
        return self.latest


def limit_of(record: Mapping[str, Any]) -> str:
    """What a training would be faster with: whichever it waits for a quarter of its time, else faster computing."""
    data, core = record["data_wait"], record.get("core_wait", 0.0)
    if max(data, core) < MUCH:
        return "computing"
    return "data" if data >= core else "other programs"


def core_wait() -> float:
    """Seconds for which this thread was ready to run and other programs had the cores, by Linux; elsewhere 0."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def memory_mb() -> float:
    """Memory in use: the most CUDA has allocated, or else what this process holds now (Linux) or held at most."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Line:
    """The progress line on standard error: a live bar on a terminal, else a plain line every ten seconds."""

    def __init__(self, name: str, total: int, shown: bool):
        self.name, self.total, self.shown = name, total, shown
        self.console = Console(stderr=True, highlight=False)
        self.live = shown and self.console.is_terminal
        self.begun, self.first, self.said_at = time.monotonic(), 0, time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, TextColumn("{task.fields[rates]}"), console=self.console, transient=True)
        self.task = self.bar.add_task(name, total=total, rates="")

    def begin(self, done: int) -> None:
        """done: steps done before, by a run that is resumed."""
        self.begun, self.first = time.monotonic(), done
        self.bar.update(self.task, completed=done)
        if self.live:
            self.bar.start()

    def step(self, step: int, record: Mapping[str, Any]) -> None:
        """record: the latest line of metrics."""
        rates = ""
        if "pairs_per_second" in record:
            rates = (
                f"loss {record['loss']:.3f}  {record['pairs_per_second']:.0f} pairs/s  "
                f"waiting {100 * record['data_wait']:.0f}%  {record['memory_mb']:.0f} MB  limit: {limit_of(record)}"
            )
        self.bar.update(self.task, completed=step, rates=spoken(rates))
        now = time.monotonic()
        if self.shown and not self.live and rates and (now - self.said_at > PLAIN_SECONDS or step == self.total):
            left = (now - self.begun) / max(1, step - self.first) * (self.total - step)
            place, left_over = spoken(f"step {step}/{self.total}"), spoken(f"{left:.0f} s left")
            self.say(f"{self.name}  {place}  {spoken(rates)}  {left_over}")
            self.said_at = now

    def say(self, text: str) -> None:
        if self.shown:
            self.console.print(spoken(text), markup=False, soft_wrap=True)

    def close(self) -> None:
        if self.live:
            self.bar.stop()


def new_provenance(corpus: Corpus, precision: str, device: torch.device) -> dict[str, Any]:
    """Where a run comes from: code, packages, hardware, corpus, command, time (UTC)."""
    return {
        "tuwen": importlib.metadata.version("tuwen"),
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "hardware": {
            "machine": platform.machine(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "precision": precision,
        },
        "corpus": {
            "name": corpus.name,
            "fingerprint": corpus.fingerprint,
            "rows": len(corpus),
            "languages": list(corpus.languages),
            "notice": corpus.notice,
        },
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _commit() -> str | None:
    """The commit of the code's own checkout, with "+changes" where it differs; None where there is none."""
    here = Path(tuwen.__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # a checkout of ours, not of whoever installed us
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """The value with numbers that JSON cannot hold (NaN, infinity) as null."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Numbers of nested dictionaries by path: ("eval/zh/mean_recall", 12.5)."""
    scalars: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            scalars.extend(_flat(value, f"{prefix}{name}/"))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            scalars.append((prefix + name, float(value)))
    return scalars
