"""The bounded queue: together what goes together, in turn, none failing for its neighbour."""

import asyncio
import threading

import pytest

from tuwen.search.service.work import Full, Work


class Slow:
    """A function that waits until it is let go, and remembers what it was called with."""

    def __init__(self):
        self.calls: list[list] = []
        self.free = threading.Event()

    def __call__(self, items):
        self.free.wait(5)
        self.calls.append(list(items))
        if "bad" in items:
            raise ValueError("bad")
        return [item * 2 for item in items]


def run(scene, **options):
    async def wrapped():
        async with Work("test", **{"limit": 10, "batch": 4} | options) as work:
            return await scene(work)

    return asyncio.run(wrapped())


async def started(work, slow, key, *items):
    tasks = [asyncio.create_task(work.together(key, slow, item)) for item in items]
    await asyncio.sleep(0.02)
    return tasks


def test_what_waits_for_the_same_is_done_together_in_order():
    slow, sizes = Slow(), []

    async def scene(work):
        tasks = await started(work, slow, "a", 1)  # in hand
        tasks += await started(work, slow, "a", 2, 3)
        tasks += await started(work, slow, "b", 10)
        tasks += await started(work, slow, "a", 4, 5, 6)
        slow.free.set()
        return await asyncio.gather(*tasks)

    assert run(scene, seen=sizes.append) == [2, 4, 6, 20, 8, 10, 12]
    assert slow.calls == [[1], [2, 3, 4, 5], [10], [6]]
    assert sizes == [1, 4, 1, 1]


def test_a_full_queue_refuses_and_takes_again():
    slow = Slow()

    async def scene(work):
        tasks = await started(work, slow, "a", 1)  # in hand
        tasks += await started(work, slow, "a", 2, 3)
        assert work.full
        with pytest.raises(Full):
            await work.together("b", slow, 4)
        slow.free.set()
        assert await asyncio.gather(*tasks) == [2, 4, 6]
        assert not work.full
        assert await work.together("b", slow, 5) == 10

    run(scene, limit=2)
    assert slow.calls == [[1], [2, 3], [5]]


def test_one_bad_job_fails_alone():
    slow = Slow()

    async def scene(work):
        tasks = await started(work, slow, "a", 0)
        tasks += await started(work, slow, "a", 1, "bad", 2)
        slow.free.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = run(scene)
    assert found[:2] + found[3:] == [0, 2, 4]
    assert isinstance(found[2], ValueError)


def test_jobs_nobody_waits_for_are_dropped():
    slow = Slow()

    async def scene(work):
        first = await started(work, slow, "a", 1)
        lost, kept = await started(work, slow, "a", 2, 3)
        lost.cancel()
        await asyncio.sleep(0.01)
        slow.free.set()
        await asyncio.gather(*first, kept)

    run(scene)
    assert slow.calls == [[1], [3]]


def test_at_the_end_what_waits_is_done():
    slow = Slow()

    async def scene(work):
        tasks = await started(work, slow, "a", 1)
        tasks += await started(work, slow, "b", 2)
        slow.free.set()
        return tasks

    assert [task.result() for task in run(scene)] == [2, 4]
    assert slow.calls == [[1], [2]]


def test_alone_means_alone():
    calls = []

    async def scene(work):
        return await asyncio.gather(*(work.alone(lambda a, b: calls.append((a, b)) or a + b, k, 1) for k in range(3)))

    assert run(scene) == [1, 2, 3]
    assert calls == [(0, 1), (1, 1), (2, 1)]
