import threading
import time

import pytest

from bfp.drivers.streaming import until_stopped


def test_rows_come_in_order_to_their_end():
    assert list(until_stopped(iter(range(5)), lambda: False)) == [0, 1, 2, 3, 4]


def test_a_request_to_stop_is_heard_while_no_row_comes():
    never, heard = threading.Event(), threading.Event()

    def rows():
        yield 1
        never.wait()

    threading.Timer(0.1, heard.set).start()
    began = time.monotonic()
    assert list(until_stopped(rows(), heard.is_set)) == [1]
    assert time.monotonic() - began < 2
    never.set()


def test_what_goes_wrong_while_rows_are_made_is_raised_where_they_are_used():
    def rows():
        yield 1
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        list(until_stopped(rows(), lambda: False))
