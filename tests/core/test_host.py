"""What is known of the process."""

import platform
import time

from research.core import host


def test_seconds_are_counted_from_the_start_of_the_process():
    before = host.seconds_since_process_start()
    time.sleep(0.05)
    after = host.seconds_since_process_start()
    assert 0 < before < 24 * 3600 and 0.04 < after - before < 10


def test_the_allocator_is_told_where_it_listens(run_python):
    told = run_python("from research.core.host import keep_freed_memory; print(keep_freed_memory())").strip()
    assert told == str(platform.libc_ver()[0] == "glibc")
