"""A task: a command that runs by the clock."""

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
"""The keys that not every type has."""

_EXAMPLES: Final = {"cron": '"0 3 * * *"', "interval": "3600"}

_LEAST_INTERVAL: Final = 0.001
_SPACE_BEFORE_OFFSET: Final = re.compile(r"\s+(?=(Z|[-+][0-9:]+)$)")


def load_tasks(directory: Path) -> Loaded[Task]:
    """Read `scheduler.yaml` in `directory`; raises nothing.

    If the machine's time zone cannot be told, that is a problem, and UTC stands in for it.
    """
    path = directory / "scheduler.yaml"
    problems = []
    try:
        local = timezone.of_machine()
    except ValueError as error:
        local = ZoneInfo("UTC")
        problems = [Problem(path, None, str(error))]
    crons: dict[str, Cron] = {}
    loaded = entries.load(path, KIND, lambda entry: _task(entry, directory, local, crons))
    return Loaded(loaded.entries, problems + loaded.problems) if loaded.entries else loaded


def _task(entry: Entry, directory: Path, local: ZoneInfo, crons: dict[str, Cron]) -> Task:
    kind: Type | None = entry.type(get_args(Type), default="interval")
    if kind is not None:
        _check_schedule(entry, kind)
    zone = entry.get("timezone", local, lambda node: timezone.find(values.text(node)))
    delay = 0.0 if kind == "one_shot" and "run_at" not in entry else None
    return Task(
        name=entry.name,
        type=kind or "interval",
        command=entry.need("command", "", values.some_text, example="./backup.sh"),
        timeout=entry.get("timeout", 300, values.seconds),
        working_dir=entry.get("working_dir", directory.absolute(), values.directory(directory)),
        enabled=entry.get("enabled", True, values.switch),
        description=entry.get("description", "", values.text),
        delay=entry.get("delay", delay, values.seconds_or_zero),
        run_at=entry.get("run_at", None, _moment(zone)),
        interval=entry.get("interval", None, _interval),
        cron=entry.get("cron", None, _cron(crons), quote=False),
        timezone=zone,
        jitter=entry.get("jitter", 0, values.seconds_or_zero),
        overlap=entry.get("overlap", "skip", values.choice(get_args(Overlap))),
        catch_up=entry.get("catch_up", "one", values.choice(get_args(CatchUp))),
        catch_up_window=entry.get("catch_up_window", None, values.seconds_or_zero),
        retries=entry.get("retries", 0, values.retries),
        env=entry.texts("env", values.variable, example="BACKUP_DIR: /srv/backup"),
    )


def _check_schedule(entry: Entry, kind: Type) -> None:
    """Refuse keys that contradict the type, or else the lack of the one that it needs."""
    if entry.fits(kind, _TYPES) and kind in _EXAMPLES:
        entry.require(kind, _EXAMPLES[kind])
    if "delay" in entry and "run_at" in entry:
        entry.problem("delay", "delay and run_at say different times; take one of them out")


def _interval(node: Node) -> float:
    found = values.seconds(node)
    if found < _LEAST_INTERVAL:
        raise ValueError(f"write a number of seconds from {_LEAST_INTERVAL}")
    return found


def _cron(known: dict[str, Cron]) -> Callable[[Node], Cron]:
    """Return what reads an expression; many tasks may have the same."""

    def read(node: Node) -> Cron:
        text = values.text(node)
        if text not in known:
            known[text] = Cron.parse(text)
        return known[text]

    return read


def _moment(zone: ZoneInfo) -> Callable[[Node], datetime]:
    """Return what reads a time; without an offset it is one in `zone`.

    PyYAML would make some of these datetimes that are naive and in UTC: the text is what counts.
    """

    def read(node: Node) -> datetime:
        try:
            text = values.written(node).strip().upper()
            moment = datetime.fromisoformat(_SPACE_BEFORE_OFFSET.sub("", text))
            if moment.tzinfo is None:
                return timezone.instant(moment, zone)
            return moment.astimezone(UTC)
        except (ValueError, OverflowError):
            raise ValueError(
                "write a time such as 2027-03-28 02:30, or 2027-03-28T02:30:00+02:00"
            ) from None

    return read
