"""Work on several frames at once."""

import functools
import threading

from toolkit.data.video.together import in_order


def test_what_is_made_ahead_is_bounded_and_ends_with_its_reader():
    asked, go = [], threading.Event()

    def wait(number):
        return number if number == 0 or go.wait(5) else None

    def tasks():
        for number in range(100):
            asked.append(number)
            yield functools.partial(wait, number)

    made = in_order(tasks(), 2)
    assert next(made) == 0 and len(asked) == 3
    go.set()
    made.close()
    assert len(asked) == 3
