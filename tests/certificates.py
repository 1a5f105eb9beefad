"""Certificates for tests, made by the program `openssl`."""

import subprocess
from pathlib import Path
from typing import NamedTuple


class Certificate(NamedTuple):
    """Where a certificate and its key lie, in PEM."""

    certificate: Path
    key: Path


def make(directory: Path, name: str = "gateway") -> Certificate:
    """Make a certificate that signs itself, or replace the one of that name."""
    made = Certificate(directory / f"{name}.pem", directory / f"{name}.key")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"]
    files = ["-keyout", f"{made.key}", "-out", f"{made.certificate}"]
    openssl("req", "-x509", *key, *files, "-days", "2", "-subj", f"/CN={name}")
    return made


def openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)
