"""The protocol as an AsyncAPI 3 document, with the JSON Schemas of the frames. No I/O.

It is generated from the structs of `clarad.protocol`, so it cannot differ from the code.
"""

from types import UnionType
from typing import Any, Final

import msgspec

from clarad import protocol
from clarad.version import VERSION

_SCHEMAS: Final = "#/components/schemas/{name}"


def document() -> dict[str, Any]:
    """Return the document. It describes the gateway: `receive` has the frames of adapters."""
    received, sent = _structs(protocol.Inbound), _structs(protocol.Outbound)
    frames = [*received, *sent]
    _, schemas = msgspec.json.schema_components(frames, ref_template=_SCHEMAS)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "The gateway of clarad",
            "version": f"{protocol.PROTOCOL_VERSION}",
            "description": f"What platform adapters and the gateway say, in clarad {VERSION}. "
            "docs/protocol.md says what it means.",
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "gateway": {
                "host": "127.0.0.1:18789",
                "protocol": "ws",
                "description": "CLARA_GATEWAY_HOST and CLARA_GATEWAY_PORT",
            }
        },
        "channels": {
            "gateway": {
                "address": "/",
                "description": "One WebSocket connection; a frame is a text message.",
                "messages": {
                    _name(f): {"$ref": f"#/components/messages/{_name(f)}"} for f in frames
                },
            }
        },
        "operations": {
            "receive": _operation("receive", received),
            "send": _operation("send", sent),
        },
        "components": {
            "messages": {_name(frame): _message(frame) for frame in frames},
            "schemas": {name: _portable(schema) for name, schema in schemas.items()},
        },
    }


def _structs(frames: UnionType) -> list[type[msgspec.Struct]]:
    return list(frames.__args__)


def _name(frame: type[msgspec.Struct]) -> str:
    return frame.__name__


def _operation(action: str, frames: list[type[msgspec.Struct]]) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": "#/channels/gateway"},
        "messages": [{"$ref": f"#/channels/gateway/messages/{_name(frame)}"} for frame in frames],
    }


def _message(frame: type[msgspec.Struct]) -> dict[str, Any]:
    return {
        "name": frame.__struct_config__.tag,
        "summary": (frame.__doc__ or "").partition("\n")[0],
        "payload": {"$ref": _SCHEMAS.format(name=_name(frame))},
    }


def _portable(schema: Any) -> Any:
    """Return the schema with patterns in JavaScript's dialect, as JSON Schema requires."""
    match schema:
        case dict():
            return {
                key: value.replace(r"\Z", "$") if key == "pattern" else _portable(value)
                for key, value in schema.items()
            }
        case list():
            return [_portable(value) for value in schema]
        case _:
            return schema
