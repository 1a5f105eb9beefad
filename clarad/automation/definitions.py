"""The configured hooks and tasks, loaded from their files."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from clarad.automation.config.entries import Problem
from clarad.automation.hooks.hook import Hook, load_hooks
from clarad.automation.tasks.task import Task, load_tasks
from clarad.config import Settings
from clarad.log.redaction import secrets_in


class Definitions(NamedTuple):
    """The valid hooks and tasks, and the problems with the others."""

    hooks: Sequence[Hook] = ()
    tasks: Sequence[Task] = ()
    problems: Sequence[Problem] = ()

    def secrets(self) -> list[str]:
        """Return what the log must not show: webhook secrets, and variables named like secrets."""
        found = [word for hook in self.hooks for word in (hook.secret or "").split()]
        for variables in (*(h.headers for h in self.hooks), *(e.env for e in self.entries())):
            found += secrets_in(variables)
        return found

    def entries(self) -> list[Hook | Task]:
        """Return the hooks and the tasks."""
        return [*self.hooks, *self.tasks]


NOTHING: Final = Definitions()


def load(settings: Settings) -> Definitions:
    """Read hooks.yaml and scheduler.yaml; a missing file defines nothing."""
    hooks, tasks = load_hooks(settings.hooks_dir), load_tasks(settings.scheduler_dir)
    return Definitions(hooks.entries, tasks.entries, hooks.problems + tasks.problems)
