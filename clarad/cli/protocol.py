"""`clarad protocol`: the wire, for machines to read."""

import argparse
import sys

import msgspec

from clarad.protocol import asyncapi


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = "Print how adapters and the gateway talk; docs/protocol.md is for people."
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument(
        "--asyncapi",
        action="store_true",
        help="as an AsyncAPI 3 document, with a JSON Schema for each frame",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print it."""
    text = msgspec.json.format(msgspec.json.encode(asyncapi.document()), indent=2)
    sys.stdout.write(text.decode() + "\n")
    return 0
