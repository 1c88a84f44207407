"""Iterating in a thread ahead of the consumer."""

import collections
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

_POLL_SECONDS = 0.05


class Ahead(Generic[Item]):
    """Iterates over items that a thread makes ahead.

    If the items come from a live video, the oldest of the items that wait is dropped when the consumer is too slow.
    Items that come faster than the clock of the video, as of a file that is sent through a pipe, wait instead.

    Args:
        make: function that returns the iterator over the items. The thread calls it.
        ready: items that wait at most.
        clock: function of an item that returns its time in the video in seconds, if old items are to be dropped.
        stopped: function that returns whether the iteration ends although no item has come.
    Attributes:
        dropped: number of items that were dropped.
    Raises:
        Exception: on iteration, what the thread raised, after the items before it.
    """

    def __init__(
        self,
        make: Callable[[], Iterator[Item]],
        ready: int,
        clock: Callable[[Item], float] | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ):
        self._make, self._ready, self._clock, self._stopped = make, ready, clock, stopped
        self._items: collections.deque[Item] = collections.deque()
        self._changed = threading.Condition()
        self._is_closed, self._is_done, self._error = False, False, None
        self.dropped = 0
        threading.Thread(target=self._run, name="ahead", daemon=True).start()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        with self._changed:
            while not (self._items or self._is_done or self._stopped()):
                self._changed.wait(_POLL_SECONDS)  # signals are handled in between
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        raise StopIteration

    def close(self) -> None:
        """Ends the thread after its current item."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _run(self):
        try:
            items, began = self._make(), None
            for item in items:
                now = time.monotonic()
                if self._clock:
                    began = now - self._clock(item) if began is None else began
                if not self._put(item, began):
                    break
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._is_done = True
                self._changed.notify_all()

    def _put(self, item, began) -> bool:
        """Adds an item when there is room, or drops the oldest. Returns False after `close`."""
        with self._changed:
            while len(self._items) >= self._ready and not self._is_closed:
                if self._clock and self._clock(item) <= time.monotonic() - began:
                    self._items.popleft()
                    self.dropped += 1
                else:
                    self._changed.wait(_POLL_SECONDS)
            self._items.append(item)
            self._changed.notify_all()
            return not self._is_closed
