"""The queue's start is marked: in the record, in a line, in the report's curves."""

import json

from tuwen.benchmark.report import _queue_start
from tuwen.run import METRICS
from tuwen.training import loop
from tuwen.training.config import RunConfig

CHANGES = {"train.batch_size": 8, "train.steps": 6, "train.log_every": 1, "data.workers": 0, "train.threads": 1}


def test_the_step_at_which_the_contrast_gets_queued_keys_is_marked(tmp_path, capsys):
    changes = CHANGES | {"train.precision": "float32", "model.queue_from": 0.5, "model.queue_share": 1.0}
    config = RunConfig.of("albef", "tiny", "scenes:count=64,side=32", "pretrain", changes)
    run = loop.train(config, tmp_path / "run")
    records = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    keys = {record["step"]: record["metrics"]["queued_keys"] for record in records if "metrics" in record}
    start = next(step for step, count in keys.items() if count)
    assert keys[start] == 8 * (start - 1)  # what the steps before have put in
    assert all(count == 0 for step, count in keys.items() if step < start)
    assert _queue_start(records) == start > 1
    lines = " ".join(capsys.readouterr().err.split())
    assert lines.count("queued keys beside its batch") == 1
    assert f"step {start}: the contrast now has {keys[start]:.0f} queued keys" in lines


def test_a_run_without_a_queue_has_no_start():
    assert _queue_start([{"step": 1, "metrics": {}}, {"step": 2}]) is None
    assert _queue_start([{"step": k, "metrics": {"queued_keys": 5}} for k in (1, 2)]) is None  # from the first step on
