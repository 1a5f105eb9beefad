"""A hook: a command or a webhook that runs on events; and how hooks.yaml is read."""

import base64
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, Literal, get_args

from msgspec import Struct
from yaml.nodes import Node

from clarad.automation.config import entries, values
from clarad.automation.config.entries import Entry, Kind, Loaded
from clarad.events import EventType

Type = Literal["shell", "webhook"]
Overlap = Literal["parallel", "queue", "skip"]


class Hook(Struct, frozen=True, kw_only=True):
    """One entry of hooks.yaml. Times are in seconds."""

    name: str
    events: frozenset[EventType]
    type: Type = "shell"
    command: str = ""
    url: str = ""
    headers: dict[str, str] = {}
    secret: str | None = None
    timeout: float = 30
    working_dir: Path
    enabled: bool = True
    description: str = ""
    priority: int = 0
    match: dict[str, str] = {}
    env: dict[str, str] = {}
    retries: int = 0
    overlap: Overlap = "parallel"

    def __repr__(self) -> str:
        # The secret, the headers and the URL are confidential.
        return f"<Hook {self.name!r}>"


KIND: Final = Kind(
    "hook", tuple("event" if key == "events" else key for key in Hook.__struct_fields__)
)

MAX_PRIORITY: Final = 1_000_000

WEBHOOK_RETRIES: Final = 3
"""The default number of retries of a webhook, since servers do restart."""

_TYPES: Final = {
    "command": ("shell",),
    "working_dir": ("shell",),
    "env": ("shell",),
    "url": ("webhook",),
    "headers": ("webhook",),
    "secret": ("webhook",),
}
"""The keys that only some types have."""

# RFC 9110, section 5. Non-ASCII characters are sent as UTF-8.
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"(?![ \t])[^\x00-\x08\x0a-\x1f\x7f]*(?<![ \t])")

# https://www.standardwebhooks.com, version 1.0.0, "signature scheme".
_SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - what all secrets begin with
_SECRET_BYTES: Final = range(24, 64 + 1)


def load_hooks(directory: Path) -> Loaded[Hook]:
    """Read `hooks.yaml` in `directory`; raises nothing."""
    return entries.load(directory / "hooks.yaml", KIND, lambda entry: _hook(entry, directory))


def _hook(entry: Entry, directory: Path) -> Hook:
    kind: Type | None = entry.get_type(get_args(Type), default="shell")
    if kind is not None and entry.check_type(kind, _TYPES):
        if kind == "shell":
            entry.require("command", 'echo "$CLARA_EVENT_TYPE"')
        else:
            entry.require("url", "https://example.org/hook")
    events = entry.get_list(
        "event", lambda node: _match_events(values.text(node)), example="tool:error"
    )
    return Hook(
        name=entry.name,
        events=frozenset().union(*events),
        type=kind or "shell",
        command=entry.get("command", "", values.non_empty_text),
        url=entry.get("url", "", _url, quote=False),
        headers=entry.get_mapping("headers", _header(set()), example="X-Source: clarad"),
        secret=entry.get("secret", None, _secret, quote=False),
        timeout=entry.get("timeout", 30, values.seconds),
        working_dir=entry.get("working_dir", directory.absolute(), values.directory(directory)),
        enabled=entry.get("enabled", True, values.boolean),
        description=entry.get("description", "", values.text),
        priority=entry.get("priority", 0, values.integer(-MAX_PRIORITY, MAX_PRIORITY)),
        match=entry.get_mapping("match", _field_pattern, example="platform: discord"),
        env=entry.get_mapping("env", values.variable, example="CHANNEL: alerts"),
        retries=entry.get("retries", WEBHOOK_RETRIES if kind == "webhook" else 0, values.retries),
        overlap=entry.get("overlap", "parallel", values.choice(get_args(Overlap))),
    )


def _match_events(pattern: str) -> frozenset[EventType]:
    """Return the event types that a pattern matches; most patterns name a single type."""
    found = frozenset(each for each in EventType if fnmatchcase(each, pattern))
    if found:
        return found
    types = tuple(EventType)
    rooms = tuple(dict.fromkeys(f"{each.partition(':')[0]}:*" for each in types))
    if "," in pattern:
        fix = f"write a list: [{', '.join(pattern.replace(',', ' ').split())}]"
    elif close := values.nearest(pattern, rooms if "*" in pattern else types):
        fix = f"did you mean {close}?"
    else:
        fix = f"write one of {', '.join(types)}, or a pattern such as {rooms[0]}"
    raise ValueError(fix)


def _field_pattern(field: str, node: Node) -> str:
    """Read the pattern for a field of the event; a boolean is matched as `true` or `false`."""
    try:
        return str(values.boolean(node)).lower()
    except ValueError:
        return values.scalar(node)


def _url(node: Node) -> str:
    import httpx  # here, since it takes 0.1 s and only webhooks need it

    found = values.text(node)
    try:
        url = httpx.URL(found)
        host = url.host and url.raw_host.decode().encode(
            "idna"
        )  # raises for names that DNS cannot have
        is_good = url.scheme in ("http", "https") and host and (url.port or 80) < 65536
    except (httpx.InvalidURL, ValueError):
        is_good = False
    if not is_good or " " in found:
        raise ValueError("write a whole address, such as https://example.org/hook")
    return found


def _header(seen: set[str]) -> Callable[[str, Node], str]:
    """Return a parser of headers; `seen` has the names so far, in lower case."""

    def read(name: str, node: Node) -> str:
        from clarad.automation.hooks.webhook import RESERVED  # imports httpx

        if not _HEADER_NAME.fullmatch(name):
            raise ValueError("write a name of letters, digits and -, such as X-Source")
        if name.lower() in RESERVED:
            raise ValueError("the webhook sets that header itself: take it out")
        if name.lower() in seen:
            raise ValueError("it is here twice, as capitals make no difference: take one out")
        seen.add(name.lower())
        found = values.scalar(node)
        if not _HEADER_VALUE.fullmatch(found):
            raise ValueError("write its value on one line, without spaces at its ends")
        return found

    return read


def _secret(node: Node) -> str:
    """Read a secret, or several separated by spaces while one replaces another."""
    found = values.text(node)
    if not found.split() or not all(map(_is_secret, found.split())):
        raise ValueError(
            f"write {_SECRET_PREFIX} and base64 of {_SECRET_BYTES[0]} to {_SECRET_BYTES[-1]} "
            "bytes; `openssl rand -base64 32` makes such"
        )
    return found


def _is_secret(word: str) -> bool:
    text = word.removeprefix(_SECRET_PREFIX)
    try:
        size = len(base64.b64decode(text + "=" * (-len(text) % 4), validate=True))
    except ValueError:
        return False
    return word != text and size in _SECRET_BYTES
