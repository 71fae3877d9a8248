"""The background thread: order, errors, and that it ends when nobody reads any more."""

import threading
import time

import pytest

from research.data.loader import prefetch


def prefetching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_gives_every_step_in_order_through_put():
    assert list(prefetch(lambda step: step * 10, 3, 8, lambda batch: batch + 1)) == [31, 41, 51, 61, 71]
    assert list(prefetch(lambda step: step, 5, 5, lambda batch: batch)) == []
    assert not prefetching()


def test_works_in_another_thread_and_only_a_few_steps_ahead():
    made, threads = [], set()

    def make(step):
        made.append(step)
        threads.add(threading.current_thread())
        return step

    batches = prefetch(make, 0, 50, lambda batch: batch, depth=2)
    for expected in range(5):
        assert next(batches) == expected
    deadline = time.monotonic() + 5
    while len(made) < 8 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    assert made == list(range(8))  # 5 taken, 2 ready, 1 that waits for room
    assert threading.current_thread() not in threads
    batches.close()


@pytest.mark.parametrize("failing", ["make", "put"])
def test_exceptions_come_after_the_results_before_them(failing):
    def fail_at_two(step):
        if step == 2:
            raise OSError("the disk went away")
        return step

    make, put = (fail_at_two, int) if failing == "make" else (int, fail_at_two)
    batches = prefetch(make, 0, None, put)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(OSError, match="the disk went away"):
        next(batches)
    assert not prefetching()


def test_leaving_the_loop_ends_a_thread_that_waits_for_room():
    for value in prefetch(lambda step: step, 0, None, lambda batch: batch):
        if value == 3:
            break
    deadline = time.monotonic() + 5
    while prefetching() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not prefetching()


def test_closing_waits_for_the_call_in_progress_and_no_longer():
    started, release = threading.Event(), threading.Event()

    def make(step):
        if step == 1:
            started.set()
            release.wait(5)
        return step

    batches = prefetch(make, 0, None, lambda batch: batch)
    next(batches)
    assert started.wait(5)
    threading.Timer(0.05, release.set).start()
    before = time.monotonic()
    batches.close()
    assert time.monotonic() - before < 2
    assert not prefetching()


def test_depth_must_be_positive():
    with pytest.raises(ValueError, match="depth"):
        prefetch(int, 0, 1, int, depth=0)
