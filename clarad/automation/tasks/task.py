"""A task: a command that runs by the clock; and how scheduler.yaml is read."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, get_args
from zoneinfo import ZoneInfo

from msgspec import Struct
from yaml.nodes import Node

from clarad.automation.config import entries, values
from clarad.automation.config.entries import Entry, Kind, Loaded, Problem
from clarad.automation.tasks import timezone
from clarad.automation.tasks.cron import Cron

Type = Literal["one_shot", "interval", "cron"]
Overlap = Literal["skip", "queue", "cancel"]
CatchUp = Literal["one", "none", "all"]


class Task(Struct, frozen=True, kw_only=True):
    """One entry of scheduler.yaml. Times are in seconds."""

    name: str
    type: Type = "interval"
    command: str
    timeout: float = 300
    working_dir: Path
    enabled: bool = True
    description: str = ""
    delay: float | None = None
    run_at: datetime | None = None
    """Aware, in UTC. Only a one-shot has it."""
    interval: float | None = None
    cron: Cron | None = None
    timezone: ZoneInfo
    jitter: float = 0
    overlap: Overlap = "skip"
    catch_up: CatchUp = "one"
    catch_up_window: float | None = None
    retries: int = 0
    env: dict[str, str] = {}


KIND: Final = Kind("task", Task.__struct_fields__)

_TYPES: Final = {
    "cron": ("cron",),
    "interval": ("interval",),
    "run_at": ("one_shot",),
    "delay": ("one_shot", "interval"),
}
"""The keys that only some types have."""

_EXAMPLES: Final = {"cron": '"0 3 * * *"', "interval": "3600"}

_LEAST_INTERVAL: Final = 0.001
_SPACE_BEFORE_OFFSET: Final = re.compile(r"\s+(?=(Z|[-+][0-9:]+)$)")


def load_tasks(directory: Path) -> Loaded[Task]:
    """Read `scheduler.yaml` in `directory`; raises nothing.

    If the machine's time zone is unknown, a problem says so, and tasks default to UTC.
    """
    path = directory / "scheduler.yaml"
    problems = []
    try:
        local = timezone.of_machine()
    except ValueError as error:
        local = ZoneInfo("UTC")
        problems = [Problem(path, None, str(error))]
    loaded = entries.load(path, KIND, lambda entry: _task(entry, directory, local))
    return Loaded(loaded.entries, problems + loaded.problems) if loaded.entries else loaded


def _task(entry: Entry, directory: Path, local: ZoneInfo) -> Task:
    kind: Type | None = entry.get_type(get_args(Type), default="interval")
    if kind is not None:
        _check_schedule(entry, kind)
    zone = entry.get("timezone", local, lambda node: timezone.find(values.text(node)))
    delay = 0.0 if kind == "one_shot" and "run_at" not in entry else None
    return Task(
        name=entry.name,
        type=kind or "interval",
        command=entry.get_required("command", "", values.non_empty_text, example="./backup.sh"),
        timeout=entry.get("timeout", 300, values.seconds),
        working_dir=entry.get("working_dir", directory.absolute(), values.directory(directory)),
        enabled=entry.get("enabled", True, values.boolean),
        description=entry.get("description", "", values.text),
        delay=entry.get("delay", delay, values.seconds_or_zero),
        run_at=entry.get("run_at", None, _moment(zone)),
        interval=entry.get("interval", None, _interval),
        cron=entry.get("cron", None, lambda node: Cron.parse(values.text(node)), quote=False),
        timezone=zone,
        jitter=entry.get("jitter", 0, values.seconds_or_zero),
        overlap=entry.get("overlap", "skip", values.choice(get_args(Overlap))),
        catch_up=entry.get("catch_up", "one", values.choice(get_args(CatchUp))),
        catch_up_window=entry.get("catch_up_window", None, values.seconds_or_zero),
        retries=entry.get("retries", 0, values.retries),
        env=entry.get_mapping("env", values.variable, example="BACKUP_DIR: /srv/backup"),
    )


def _check_schedule(entry: Entry, kind: Type) -> None:
    """Report keys that contradict the type, or else the lack of the key that it requires."""
    if entry.check_type(kind, _TYPES) and kind in _EXAMPLES:
        entry.require(kind, _EXAMPLES[kind])
    if "delay" in entry and "run_at" in entry:
        entry.report("delay", "delay and run_at say different times; take one of them out")


def _interval(node: Node) -> float:
    found = values.seconds(node)
    if found < _LEAST_INTERVAL:
        raise ValueError(f"write a number of seconds from {_LEAST_INTERVAL}")
    return found


def _moment(zone: ZoneInfo) -> Callable[[Node], datetime]:
    """Return a parser of times; one without an offset is in `zone`.

    It parses the text itself, since PyYAML makes naive datetimes in UTC of some.
    """

    def read(node: Node) -> datetime:
        try:
            text = values.scalar(node).strip().upper()
            moment = datetime.fromisoformat(_SPACE_BEFORE_OFFSET.sub("", text))
            if moment.tzinfo is None:
                return timezone.instant(moment, zone)
            return moment.astimezone(UTC)
        except (ValueError, OverflowError):
            raise ValueError(
                "write a time such as 2027-03-28 02:30, or 2027-03-28T02:30:00+02:00"
            ) from None

    return read
