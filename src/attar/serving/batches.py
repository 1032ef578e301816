"""Put the questions of many requests into one call of the teacher."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]


class _Waiting(NamedTuple):
    items: Sequence[Any]
    answer: "asyncio.Future[Rows]"


class Batcher:
    """While the teacher works on a batch, what arrives is gathered for the next one.

    Args:
        encode: n items -> [n, D]; called in `thread`, one call at a time.
        largest: most items in one call.
        thread: where the teacher runs.
        count: told the size of every call.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[Any]], Rows],
        largest: int,
        thread: ThreadPoolExecutor,
        count: Callable[[int], None],
    ) -> None:
        self._encode = encode
        self._largest = largest
        self._thread = thread
        self._count = count
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()

    async def ask(self, items: Sequence[Any]) -> Rows:
        """Return the rows [n, D] of the items; raises what the teacher raised."""
        answer: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()
        await self._queue.put(_Waiting(items, answer))
        return await answer

    async def run(self) -> None:
        """Answer until cancelled."""
        while True:
            batch = [await self._queue.get()]
            while sum(len(one.items) for one in batch) < self._largest and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            items = [item for one in batch for item in one.items]
            loop = asyncio.get_running_loop()
            try:
                rows = await loop.run_in_executor(self._thread, self._in_parts, items)
            except Exception as error:  # belongs to the requests, not to the server
                for one in batch:
                    if not one.answer.done():
                        one.answer.set_exception(error)
                continue
            start = 0
            for one in batch:
                if not one.answer.done():
                    one.answer.set_result(rows[start : start + len(one.items)])
                start += len(one.items)

    def _in_parts(self, items: Sequence[Any]) -> Rows:
        parts = []
        for start in range(0, len(items), self._largest):
            part = items[start : start + self._largest]
            self._count(len(part))
            parts.append(self._encode(part))
        return np.concatenate(parts)
