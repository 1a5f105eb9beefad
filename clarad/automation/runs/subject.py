"""The subject of a run, a hook or a task, as the log names it."""

from typing import Final, Literal, NamedTuple

from clarad.store import Ending, Outcome
from clarad.systemd import catalogue
from clarad.systemd.catalogue import Entry

_ENTRIES: Final = {
    "hook": (catalogue.HOOK_RAN, catalogue.HOOK_SKIPPED, catalogue.HOOK_FAILED),
    "task": (catalogue.TASK_RAN, catalogue.TASK_SKIPPED, catalogue.TASK_FAILED),
}


class Subject(NamedTuple):
    """A hook or a task by its name; `str` names it within a log line."""

    kind: Literal["hook", "task"]
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    def fields(self, run_id: str | None = None) -> dict[str, str | None]:
        """Return the fields of a log record about one of its runs."""
        return {self.kind: self.name, "run": run_id}

    def entry(self, ending: Ending) -> Entry:
        """Return the catalogue's entry for one of its runs with this ending."""
        ran, skipped, failed = _ENTRIES[self.kind]
        return {Outcome.RAN: ran, Outcome.SKIPPED: skipped}.get(ending.outcome, failed)
