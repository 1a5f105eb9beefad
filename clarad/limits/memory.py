"""A budget of bytes that many holders share. No I/O.

Each holder has a few bytes of its own. Beyond those it may grow to as much as is still free
afterwards. So a few large holders leave room for the next one, many holders get less each, a small
one always fits, and none has to be evicted. The rule is that of switches with a shared memory:
A. K. Choudhury and E. L. Hahne, "Dynamic queue length thresholds for shared-memory packet
switches", IEEE/ACM Transactions on Networking 6(2), 1998.

Rejected: the budget divided by the number of holders. Most of them hold nothing, and one long
answer has to fit.
"""


class MemoryBudget:
    """Counts the shared bytes in use. Each holder remembers how many it holds itself."""

    def __init__(self, size: int, own: int = 0) -> None:
        """`own` bytes are guaranteed to each holder, and are not a part of `size`."""
        self.size = size
        self.own = own
        self.used = 0

    def fits(self, before: int, after: int) -> bool:
        """Return whether a holder may grow from `before` to `after` bytes."""
        if after <= self.own:
            return True
        more = self._shared(after) - self._shared(before)
        return more <= 0 or self.used + more + self._shared(after) <= self.size

    def can_ever_fit(self, held: int) -> bool:
        """Return whether `held` bytes would fit if there were no other holder."""
        return 2 * self._shared(held) <= self.size

    def may_keep(self, held: int) -> bool:
        """Return whether a holder may keep its `held` bytes, given what the others hold."""
        return self.used + self._shared(held) <= self.size

    def change(self, before: int, after: int) -> None:
        """Note that a holder has changed from `before` to `after` bytes."""
        if before > self.own or after > self.own:  # most hold no more than their own
            self.used += self._shared(after) - self._shared(before)

    def _shared(self, held: int) -> int:
        return max(held - self.own, 0)
