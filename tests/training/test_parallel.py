"""Two processes train what one does."""

import shutil
import socket
from pathlib import Path

import torch

from tests.children import Child
from tests.training import toy
from tests.training.test_resume import entries_seen
from tuwen.teachers.pace import AVERAGE, BAND, BOUND, SPEED
from tuwen.training import checkpoint, loop
from tuwen.training.log import read_metrics

SETTINGS = {"model.dropout": "0", "train.steps": "6", "train.checkpoint_every": "3"}


def together(processes: int, action: str, run: Path, **settings: str) -> None:
    """What torchrun does, on the loopback interface."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    shared |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    words = ["tests.training.toy", action, str(run), *(f"{name}={value}" for name, value in settings.items())]
    children = [
        Child(run.with_name(f"{run.name} {rank}"), *words, RANK=str(rank), LOCAL_RANK=str(rank), **shared)
        for rank in range(processes)
    ]
    for child in children:
        assert child.end() == 0, child.errors.read_text()[-3000:]


def test_two_processes_are_one_and_one_may_go_on_with_what_two_began(tmp_path, monkeypatch):
    """Contrast over gathered rows, a queue and a pace fed by both; then resumed by one process alone."""
    with toy.registered(), monkeypatch.context() as patch:
        seen = entries_seen(patch)
        config = toy.config(**{name.replace(".", "__"): value for name, value in SETTINGS.items()})
        loop.train(config, tmp_path / "one", corpus=toy.Memory(), quiet=True)
    together(2, "train", tmp_path / "two", **SETTINGS)
    one, two = (checkpoint.load_tensors(tmp_path / run / "weights.safetensors") for run in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        if "attention.query_key_value.bias" in name:
            continue  # the key's bias has no gradient but rounding, which AdamW scales up
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-6, msg=name)
    records = [read_metrics(tmp_path / run / "metrics.jsonl") for run in ("one", "two")]
    for first, second in zip(*records, strict=True):
        assert first["step"] == second["step"]
        assert abs(first["loss"] - second["loss"]) < 1e-5
        assert abs(first["grad_norm"] - second["grad_norm"]) < 1e-4
    paces = [paced(seen[:steps]) for steps in range(6)]  # a step logs the pace it was taken at
    for record in (record for run in records for record in run if record.get("metrics")):
        average, hardness = paces[record["step"] - 1]
        assert abs(record["metrics"]["matching_gain"] - average) < 1e-6
        assert abs(record["metrics"]["hardness"] - hardness) < 1e-6
    assert paces[-1][1] > 0.005

    last = tmp_path / "two/state/step-00000006"
    for path in last.iterdir():
        path.unlink()
    last.rmdir()
    provenance = tmp_path / "two/provenance.json"
    provenance.write_text(provenance.read_text().replace('"finished"', '"before"'))
    with toy.registered():
        loop.resume(tmp_path / "two", corpus=toy.Memory(), quiet=True)
    assert [line["step"] for line in read_metrics(tmp_path / "two/metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    again = checkpoint.load_tensors(tmp_path / "two/weights.safetensors")
    torch.testing.assert_close(again["image.weight"], one["image.weight"], rtol=1e-5, atol=1e-6)
    states = [
        checkpoint.load_tensors(tmp_path / run / "state/step-00000006/training.safetensors") for run in ("one", "two")
    ]
    assert torch.equal(states[0]["queue.image_id"], states[1]["queue.image_id"])
    for state in states:
        torch.testing.assert_close((float(state["pace.average"]), float(state["pace.hardness"])), paced(seen))


def paced(batches):
    """(average gain, hardness) of the toy's pace after batches of corpus rows, whole ones: of all processes."""
    average, hardness = 0.3, 0.0
    for rows in batches:
        average += AVERAGE * (sum(row % 5 / 2 for row in rows) / len(rows) - average)
        hardness += min(BOUND, SPEED * max(0.0, average - BAND[1]))
    return average, hardness


GROUPED = {"train.order": "grouped", "train.group_search": "16", "train.group_queue": "32"}


def test_two_processes_plan_as_one_and_one_follows_the_plan_of_two(tmp_path, monkeypatch):
    """Five steps an epoch; lost after step 9, in the second epoch, with four steps of vectors waiting."""
    settings = SETTINGS | GROUPED | {"train.steps": "12", "train.keep": "9"}
    with toy.registered():
        config = toy.config(**{name.replace(".", "__"): value for name, value in settings.items()})
        with monkeypatch.context() as patch:
            seen = entries_seen(patch)
            loop.train(config, tmp_path / "one", corpus=toy.Memory(), quiet=True)
    together(2, "train", tmp_path / "two", **settings)
    plans = {}
    for step in (6, 9, 12):
        one, two = (
            checkpoint.load_tensors(tmp_path / f"{run}/state/step-{step:08d}/order.safetensors")
            for run in ("one", "two")
        )
        assert one.keys() == two.keys()
        for name in one:  # vectors of eight rows and of four differ in rounding; the entries chained by them do not
            torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-6, msg=f"{step} {name}")
        plans[step] = two["plan"].tolist()
    assert plans[6] == plans[9] != plans[12]
    assert len({*plans[6]}) == len({*plans[12]}) == 40
    assert [entry for batch in seen[5:10] for entry in batch] == plans[6]
    assert [entry for batch in seen[10:] for entry in batch] == plans[12][:16]

    shutil.rmtree(tmp_path / "two/state/step-00000012")
    provenance = tmp_path / "two/provenance.json"
    provenance.write_text(provenance.read_text().replace('"finished"', '"before"'))
    with toy.registered(), monkeypatch.context() as patch:
        after = entries_seen(patch)
        loop.resume(tmp_path / "two", corpus=toy.Memory(), quiet=True)
    assert after == seen[9:], "one process goes on by the plan that two made, and plans on from what they collected"


def test_all_have_what_the_first_process_has(tmp_path):
    """Names, kinds and shapes differ between the processes; what comes out is the first one's alone."""
    together(2, "share", tmp_path / "given")
    first, second = (checkpoint.load_tensors(tmp_path / f"given-{rank}.safetensors") for rank in range(2))
    assert first["counts"].tolist() == [2**40 + k for k in range(5)]
    assert first["vectors"].tolist() == [[0.5] * 3] * 2
    assert first["mask"].tolist() == [True, False]
    assert (first["none"].shape, first["of 0"].item(), len(first)) == ((0, 4), 0, 5)
    assert second.keys() == first.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype
        assert torch.equal(first[name], second[name])


def test_a_memory_that_no_epoch_renews_is_not_sent(tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(loop.parallel, "shared", lambda tensors, place: sent.append(set(tensors)) or dict(tensors))
    with toy.registered():
        loop.train(toy.config(), tmp_path / "renewed", corpus=toy.Memory(), quiet=True)
        assert sent == [{"means"}] * 2, "after the two whole epochs of thirteen steps"
        monkeypatch.delattr(toy.Toy, "end_epoch")
        loop.train(toy.config(), tmp_path / "constant", corpus=toy.Memory(), quiet=True)
    assert len(sent) == 2
