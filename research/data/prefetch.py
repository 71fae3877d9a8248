"""Batches made and put on the devices by one thread in the background, a few steps ahead of the one that consumes
them."""

import threading
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, TypeVar

Put = TypeVar("Put")


def prefetch(
    make_batch: Callable[[int], Any], start: int, stop: int | None, put: Callable[[Any], Put], depth: int = 2
) -> Generator[Put, None, None]:
    """Yields `put(make_batch(step))` for the steps from `start` to below `stop` (without end for None), in order.

    A thread keeps up to `depth` results ready, from the first `next` on. What `make_batch` or `put` raises is raised
    here at the step where it happened, after the results before it. Leaving the loop or closing the iterator ends the
    thread: it finishes the call that it is in, if any, and is waited for.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, not {depth}")
    return _consume(_Queue(depth), make_batch, start, stop, put)


class _Queue:
    """A bounded queue that either side can end; both sides sleep until there is something to do."""

    def __init__(self, depth: int):
        self._depth = depth
        self._ready: deque[tuple[bool, Any]] = deque()
        self._closed = False
        self._changed = threading.Condition()

    def add(self, is_result: bool, value: Any) -> bool:
        """Waits for room. Returns False, without having added, once the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._ready) < self._depth)
            if not self._closed:
                self._ready.append((is_result, value))
                self._changed.notify_all()
            return not self._closed

    def take(self) -> tuple[bool, Any]:
        with self._changed:
            self._changed.wait_for(lambda: len(self._ready) > 0)
            self._changed.notify_all()
            return self._ready.popleft()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()


def _produce(
    queue: _Queue, make_batch: Callable[[int], Any], start: int, stop: int | None, put: Callable[[Any], Any]
) -> None:
    """Adds (True, result) for every step, then (False, what ended it: None or an exception)."""
    try:
        step = start
        while stop is None or step < stop:
            if not queue.add(True, put(make_batch(step))):
                return
            step += 1
    except BaseException as error:
        queue.add(False, error)
    else:
        queue.add(False, None)


def _consume(
    queue: _Queue, make_batch: Callable[[int], Any], start: int, stop: int | None, put: Callable[[Any], Put]
) -> Generator[Put, None, None]:
    thread = threading.Thread(target=_produce, args=(queue, make_batch, start, stop, put), name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            is_result, value = queue.take()
            if is_result:
                yield value
            elif value is None:
                return
            else:
                raise value
    finally:
        queue.close()
        thread.join()
