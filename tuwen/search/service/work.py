"""Jobs of many requests, done in turn on one thread; those that can be done together are."""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any


class Full(Exception):
    """So many jobs wait that one more is refused."""


@dataclass
class _Job:
    key: Hashable
    function: Callable[[Sequence[Any]], Sequence[Any]]
    item: Any
    done: asyncio.Future


class Work:
    """A bounded queue before one thread, which lives while this is entered.

    Nothing waits for company: what has come in while the thread was busy is done together next, so a lone request
    loses no time and many share their passes.

    limit: jobs that may wait beside the ones in hand. batch: jobs done together. seen: called with the size of each
    batch.
    """

    def __init__(self, name: str, limit: int, batch: int = 1, seen: Callable[[int], None] = lambda size: None):
        self.limit, self.batch, self.seen = limit, batch, seen
        self.name = name
        self._waiting: deque[_Job] = deque()

    async def __aenter__(self) -> "Work":
        self._come, self._closing = asyncio.Event(), False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=self.name)
        self._task = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *error) -> None:
        """Ends the thread, once what waits is done."""
        self._closing = True
        self._come.set()
        await self._task
        await asyncio.to_thread(self._thread.shutdown)

    def __len__(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        return len(self._waiting) >= self.limit

    async def together(self, key: Hashable, function: Callable[[Sequence[Any]], Sequence[Any]], item: Any) -> Any:
        """The item's own entry of `function(items)`, called with items of waiting jobs of the same key, in order.

        Raises:
            Full: too many wait.
        """
        if self.full:
            raise Full
        job = _Job(key, function, item, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._come.set()
        return await job.done

    async def alone(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(*arguments)` in its turn.

        Raises:
            Full: too many wait.
        """
        return await self.together(object(), lambda items: [function(*arguments)], None)

    async def _work(self) -> None:
        while True:
            jobs = self._next()
            if jobs:
                self.seen(len(jobs))
                await self._do(jobs)
            elif self._closing:
                return
            else:
                self._come.clear()
                await self._come.wait()

    def _next(self) -> list[_Job]:
        """The first job and those that go with it; jobs nobody waits for any more are dropped."""
        waiting = [job for job in self._waiting if not job.done.done()]
        jobs = [job for job in waiting if job.key == waiting[0].key][: self.batch]
        taken = {id(job) for job in jobs}
        self._waiting = deque(job for job in waiting if id(job) not in taken)
        return jobs

    async def _do(self, jobs: list[_Job]) -> None:
        """Runs the jobs together; if that fails, each by itself, so that none fails for its neighbour."""
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._thread, jobs[0].function, [job.item for job in jobs])
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    await self._do([job])
            elif not jobs[0].done.done():
                jobs[0].done.set_exception(error)
            return
        for job, result in zip(jobs, results, strict=True):
            if not job.done.done():
                job.done.set_result(result)
