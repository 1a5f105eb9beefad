"""Room that many share, such as bytes of memory. No I/O.

Each holder has a little of its own, and beyond that may have as much as is still free after it. So
a few that hold on to theirs leave room for whoever comes next, with many of them each gets less,
those who want little always get it, and nobody has to be looked for to be thrown out. The rule is
that of switches with a shared memory: A. K. Choudhury and E. L. Hahne, "Dynamic queue length
thresholds for shared-memory packet switches", IEEE/ACM Transactions on Networking 6(2), 1998.

Rejected: the room divided by the number of holders. Most of them hold nothing, and one long answer
has to fit.
"""


class MemoryBudget:
    """How much of the room is taken. A holder keeps its own account of what it has."""

    def __init__(self, size: int, own: int = 0) -> None:
        """`own` is what each holder may have in any case; it is not a part of `size`."""
        self.size = size
        self.own = own
        self.used = 0

    def fits(self, before: int, after: int) -> bool:
        """Whether somebody who has `before` may have `after` instead."""
        if after <= self.own:
            return True
        more = self._shared(after) - self._shared(before)
        return more <= 0 or self.used + more + self._shared(after) <= self.size

    def can_ever_fit(self, held: int) -> bool:
        """Whether somebody may have so much if nobody else has anything."""
        return 2 * self._shared(held) <= self.size

    def may_keep(self, held: int) -> bool:
        """Whether somebody may keep what he has, now that others have what they have."""
        return self.used + self._shared(held) <= self.size

    def change(self, before: int, after: int) -> None:
        """Note that somebody who had `before` has `after` instead."""
        if before > self.own or after > self.own:  # most hold no more than their own
            self.used += self._shared(after) - self._shared(before)

    def _shared(self, held: int) -> int:
        return max(held - self.own, 0)
