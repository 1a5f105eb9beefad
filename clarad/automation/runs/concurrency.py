"""How many runs go on at once: so many in each lane, and so many in all. No I/O."""

from collections import deque
from collections.abc import Callable

import trio

Start = Callable[[], None]


class Lane:
    """Runs that take turns with each other: those of one hook, or of all tasks."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.running = 0
        self.waiting: deque[Start] = deque()


class Lanes:
    """Gives places to whoever asks, in each lane in the order of asking."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._running = 0
        self._waiting: dict[Lane, None] = {}  # in the order in which they are looked at

    def take(self, lane: Lane) -> bool:
        """Take a place at once, if there is one and nobody waits for it."""
        if lane.waiting or not self._has_room(lane):
            return False
        self._running += 1
        lane.running += 1
        return True

    def wait(self, lane: Lane, start: Start) -> None:
        """Have `start` called once there is a place, which then is taken."""
        if self.take(lane):
            start()
        else:
            lane.waiting.append(start)
            self._waiting[lane] = None

    def leave(self, lane: Lane) -> None:
        """Give a place back; whoever is next has it then."""
        self._running -= 1
        lane.running -= 1
        self.look()

    def look(self) -> None:
        """Start those that there is a place for; to be called when a capacity has grown."""
        while self._running < self._capacity:
            lane = next((lane for lane in self._waiting if self._has_room(lane)), None)
            if lane is None:
                return
            start = lane.waiting.popleft()
            del self._waiting[lane]
            if lane.waiting:
                self._waiting[lane] = None  # behind the others: a long queue starves nobody
            self._running += 1
            lane.running += 1
            start()

    async def enter(self, lane: Lane) -> None:
        """Wait for a place and take it. Cancelling takes none."""
        turn = trio.Event()
        self.wait(lane, turn.set)
        try:
            await turn.wait()
        except trio.Cancelled:
            if turn.is_set():
                self.leave(lane)
            else:
                self.forget(lane, turn.set)
            raise

    def forget(self, lane: Lane, start: Start) -> None:
        """Wait no longer."""
        lane.waiting.remove(start)
        if not lane.waiting:
            self._waiting.pop(lane, None)

    def _has_room(self, lane: Lane) -> bool:
        return self._running < self._capacity and lane.running < lane.capacity
