"""Typed access to the fields of a parsed document, with errors that name the field, what it holds and what it should."""

from __future__ import annotations

import ipaddress
import re
import reprlib
from typing import Any

# RFC 1123 subdomain, the form of Kubernetes' object names.
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
# A label of a host's name: RFC 1123, 2.1, and the underscore that many have in spite of it.
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


_show = reprlib.repr


class FieldError(ValueError):
    """A field is missing or holds something else than expected."""


class Fields:
    """One object of a document. null counts as absent, as in Kubernetes."""

    def __init__(self, values: dict[Any, Any], path: str = "") -> None:
        self.values = values
        self.path = path

    def text(self, key: str, *, required: bool = False) -> str:
        """A string; "" when absent."""
        value = self.values.get(key)
        if value is None:
            if required:
                raise FieldError(f"{self._at(key)} is missing")
            return ""
        if not isinstance(value, str):
            raise FieldError(f"{self._at(key)} is {_show(value)}, expected text (put it in quotes)")
        return value

    def name(self, key: str) -> str:
        """The name of an object."""
        value = self.text(key, required=True)
        if not _NAME.fullmatch(value):
            raise FieldError(f"{self._at(key)} is {_show(value)}, expected lower-case letters, digits, '-' and '.'")
        return value

    def host(self, key: str) -> str:
        """The name of a host in the DNS, in lower case and without a final dot."""
        value = self.text(key, required=True)
        host = value.lower().removesuffix(".")
        if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in host.split(".")):
            raise FieldError(f"{self._at(key)} is {_show(value)}, expected the name of a host, such as db.example.com")
        return host

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        """One of some words; the first when absent."""
        value = self.text(key) or choices[0]
        if value not in choices:
            raise FieldError(f"{self._at(key)} is {_show(value)}, expected {' or '.join(choices)}")
        return value

    def number(self, key: str, low: int, high: int, *, required: bool = False) -> int:
        """A whole number within bounds; 0 when absent."""
        value = self.values.get(key)
        if value is None:
            if required:
                raise FieldError(f"{self._at(key)} is missing")
            return 0
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise FieldError(f"{self._at(key)} is {_show(value)}, expected a whole number from {low} to {high}")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """true or false."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise FieldError(f"{self._at(key)} is {_show(value)}, expected true or false")
        return value

    def section(self, key: str, *, required: bool = False) -> Fields:
        """An object; an empty one when absent."""
        value = self.values.get(key)
        if value is None:
            if required:
                raise FieldError(f"{self._at(key)} is missing")
            value = {}
        if not isinstance(value, dict):
            raise FieldError(f"{self._at(key)} is {_show(value)}, expected an object")
        return Fields(value, self._at(key))

    def sections(self, key: str) -> list[Fields]:
        """A list of objects; empty when absent."""
        found: list[Fields] = []
        for index, value in enumerate(self._list(key)):
            path = f"{self._at(key)}[{index}]"
            if not isinstance(value, dict):
                raise FieldError(f"{path} is {_show(value)}, expected an object")
            found.append(Fields(value, path))
        return found

    def strings(self, key: str) -> list[str]:
        """A list of strings; empty when absent."""
        values = self._list(key)
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise FieldError(f"{self._at(key)}[{index}] is {_show(value)}, expected text (put it in quotes)")
        return values

    def ips(self, key: str, *, required: bool = False) -> list[str]:
        """An IP literal or a list of them, in canonical form; empty when absent."""
        value = self.values.get(key)
        values = [value] if isinstance(value, str) and value else self.strings(key)
        if required and not values:
            raise FieldError(f"{self._at(key)} is missing")
        try:
            return [str(ipaddress.ip_address(item)) for item in values]
        except ValueError as error:
            raise FieldError(f"{self._at(key)}: {error}, expected an IP address") from None

    def texts(self, key: str) -> dict[str, str]:
        """A map of strings; empty when absent."""
        values = self.section(key).values
        for name, value in values.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise FieldError(f"{self._at(key)}.{name} is {_show(value)}, expected text (put it in quotes)")
        return dict(values)

    def _list(self, key: str) -> list[Any]:
        value = self.values.get(key)
        if value is None or value == "":
            return []
        if not isinstance(value, list):
            raise FieldError(f"{self._at(key)} is {_show(value)}, expected a list")
        return value

    def _at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key
