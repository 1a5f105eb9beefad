"""The wire, written down for machines, is the wire."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from clarad import protocol
from clarad.protocol import asyncapi
from tests.daemon_process import clarad, environment

PAGE = (Path(__file__).parents[2] / "docs/protocol.md").read_text()
EXAMPLES = re.findall(r"^([→←]) (\{.*\})$", PAGE, re.MULTILINE)
OPERATION = {"→": "receive", "←": "send"}


def refs(part: Any) -> Iterator[str]:
    """Return every reference within the document."""
    if isinstance(part, dict):
        if "$ref" in part:
            yield part["$ref"]
        part = list(part.values())
    if isinstance(part, list):
        for value in part:
            yield from refs(value)


def look_up(document: Any, ref: str) -> Any:
    for step in ref.removeprefix("#/").split("/"):
        document = document[step]
    return document


def validator(operation: str) -> Draft202012Validator:
    """Return what takes every frame of a direction, and nothing else."""
    document = asyncapi.document()
    frames = [
        look_up(document, look_up(document, message["$ref"])["$ref"])["payload"]
        for message in document["operations"][operation]["messages"]
    ]
    return Draft202012Validator({"oneOf": frames, "components": document["components"]})


def test_every_reference_leads_somewhere() -> None:
    document = asyncapi.document()
    for ref in refs(document):
        assert look_up(document, ref)


def test_the_schemas_are_schemas() -> None:
    for schema in asyncapi.document()["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(("arrow", "frame"), EXAMPLES, ids=lambda value: value[:40])
def test_the_examples_of_the_page_are_frames(arrow: str, frame: str) -> None:
    validator(OPERATION[arrow]).validate(json.loads(frame))
    decode = protocol.decode if arrow == "→" else protocol.decode_outbound
    decode(frame)


def test_the_page_has_an_example_of_every_frame() -> None:
    shown = {(arrow, json.loads(frame)["type"]) for arrow, frame in EXAMPLES}
    assert shown == {("→", tag) for tag in protocol.tags(protocol.Inbound)} | {
        ("←", tag) for tag in protocol.tags(protocol.Outbound)
    }


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "cancel"},
        {"type": "cancel", "request_id": ""},
        {"type": "cancel", "request_id": "a\0b"},
        {"type": "cancel", "request_id": "x" * 256},
        {"type": "ack", "seq": "7"},
        {"type": "pong", "timestamp": "now"},
    ],
    ids=str,
)
def test_what_the_gateway_refuses_the_schemas_refuse(frame: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        validator("receive").validate(frame)
    with pytest.raises(protocol.Refused):
        protocol.decode(json.dumps(frame))


def test_the_command_prints_it(tmp_path: Path) -> None:
    done = clarad("protocol", "--asyncapi", env=environment(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == asyncapi.document()
