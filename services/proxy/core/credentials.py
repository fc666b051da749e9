"""Who may use the SOCKS proxy: users with their passwords."""

import hashlib
import hmac
from collections.abc import Mapping

LONGEST = 255
"""Bytes of a user's name and of a password: RFC 1929 counts them in one byte."""


class Credentials:
    """Users and passwords. Comparing takes the same time whatever is wrong, and wherever."""

    def __init__(self, users: Mapping[str, str]) -> None:
        # Digests: of equal length whatever the password's is.
        self._users = {name.encode(): _digest(password.encode()) for name, password in users.items()}

    def __bool__(self) -> bool:
        return bool(self._users)

    def check(self, user: bytes, password: bytes) -> bool:
        """Whether it is one of the users, and the password hers."""
        known = self._users.get(user)
        # Also for a stranger, who would else be told apart by the time that it takes.
        equal = hmac.compare_digest(known or _NOBODY, _digest(password))
        return equal and known is not None


def parse(text: str) -> dict[str, str]:
    """The users of a file of lines "name:password"; empty lines and those that begin with "#" do not count.

    Raises ValueError for the first line that means nothing.
    """
    users: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, password = line.partition(":")
        name = name.strip()
        if not colon or not 0 < len(name.encode()) <= LONGEST or not 0 < len(password.encode()) <= LONGEST:
            raise ValueError(f"line {number}: expected name:password, each of 1 to {LONGEST} bytes")
        if name in users:
            raise ValueError(f"line {number}: the user {name} is named twice")
        users[name] = password
    return users


def _digest(password: bytes) -> bytes:
    return hashlib.sha256(password).digest()


_NOBODY = _digest(b"")
