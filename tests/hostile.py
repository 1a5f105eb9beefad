"""Texts that would like to be more than texts in a log."""

from typing import Final

HOSTILE: Final = [
    "x\n2026-01-01 12:00:00,000 INFO    stopped",
    "x\r\nstopped",
    "x\rstopped",
    "x\vstopped",
    "x\fstopped",
    "x\x1cstopped",
    "x\x85stopped",
    "x\u2028stopped",
    "x\u2029stopped",
    "x\x1b[2J\x1b[1;1Hstopped",
    "x\x9b2Jstopped",
    "x\x1b]0;title\x07",
    "x\bstopped",
    "x\0stopped",
    "x\u202estopped",
    "x\u200bstopped",
    "x\ufeffstopped",
    "x\udc80stopped",
]
