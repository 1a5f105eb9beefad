"""The last line of defence against secrets in the log: known secrets are redacted."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import quote, quote_plus, unquote, urlsplit

from clarad.log.record import Record, Scalar

HIDDEN: Final = "[secret]"

_LONG: Final = 8
"""Characters from which on a secret is also found within words; a shorter one must be a word."""

_WORTH_HIDING: Final = 6
"""Characters that a value must have to count as a secret because of its name."""

_NAMES: Final = re.compile(
    r"(?i)(SECRET|TOKEN|PASSWORD|PASSWD|API[_-]?KEY)S?$|AUTHORIZATION|COOKIE"
)
_SHAPES: Final = (
    r"(?<=://)[^\s/@:]*:[^\s/@]+(?=@)",  # the name and the password in an address
    r"(?i:(?<=authorization: )|(?<=authorization': ')|(?<=authorization\": \"))[^\r\n'\"]+",
    r"(?i:(?<=bearer )|(?<=basic ))(?=\S*[\d=])[\w.~+/=-]{6,}",  # and no word of a sentence
    r"whsec_[\w+/=-]+",
    r"clarad_[\w-]{43}",  # a token of clarad.store.tokens; the names of tables are shorter
)
_MARKS: Final = ("://", "authorization", "bearer ", "basic ", "whsec_", "clarad_")
"""Every text with such a shape has one of these in it, and they are cheap to look for."""


class Redactor:
    """Redacts records: the secrets that it knows, and text with the shape of a secret."""

    def __init__(self) -> None:
        self._known: frozenset[str] = frozenset()
        self._forms: frozenset[str] = frozenset()
        self._pattern = _compile(())

    def hide(self, secrets: Iterable[str]) -> None:
        """Redact these from now on, in addition to those before."""
        self._known |= {secret for secret in secrets if secret.strip()}
        self._forms = frozenset(form for secret in self._known for form in _forms(secret))
        self._pattern = _compile(self._forms)

    def redact(self, record: Record) -> Record:
        """Return the record without any secret."""
        texts = [value for value in record.fields.values() if isinstance(value, str)]
        if not self._is_suspicious("\0".join([record.message, *texts])):
            return record
        fields: dict[str, Scalar] = {
            name: self._without(value) if isinstance(value, str) else value
            for name, value in record.fields.items()
        }
        return record._replace(message=self._without(record.message), fields=fields)

    def _is_suspicious(self, text: str) -> bool:
        lower = text.lower()
        return any(f in text for f in self._forms) or any(mark in lower for mark in _MARKS)

    def _without(self, text: str) -> str:
        return self._pattern.sub(HIDDEN, text)


def secrets_in(variables: Mapping[str, str]) -> list[str]:
    """Return the values of variables, or of headers, whose names mean a secret."""
    values = (value for name, value in variables.items() if _NAMES.search(name))
    words = (word for value in values for word in (value, *value.split()[1:]))  # `Bearer …`
    return [word for word in words if len(word) >= _WORTH_HIDING]


def password_in(url: str) -> list[str]:
    """Return the password of a database URL, if it has one."""
    try:
        password = urlsplit(url).password
    except ValueError:
        return []
    return [password, unquote(password)] if password else []


def _compile(forms: Iterable[str]) -> re.Pattern[str]:
    known = (_literal(form) for form in sorted(forms, key=len, reverse=True))
    return re.compile("|".join([*known, *_SHAPES]))


def _forms(secret: str) -> set[str]:
    """Return the forms in which a secret can appear: plain, in a URL, as a literal, in JSON."""
    encoded = secret.encode(errors="replace")
    return {
        secret,
        quote(encoded, safe=""),
        quote_plus(encoded),
        repr(secret)[1:-1],
        ascii(secret)[1:-1],
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
    }


def _literal(secret: str) -> str:
    literal = re.escape(secret)
    return literal if len(secret) >= _LONG else rf"(?<!\w){literal}(?!\w)"
