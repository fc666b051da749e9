"""Reading the body of an object: each field by its type, and none overlooked.

A condition or restriction that is not known here must not be passed over: the route would get requests that its author
keeps from it. So fields are taken one by one, and `end` refuses what is left; `ignore` names those that do no harm.
"""

import reprlib
from typing import Any


class ObjectError(ValueError):
    """An object cannot be served; one line for its author."""


class Spec:
    """One JSON object. null counts as absent."""

    def __init__(self, value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise ObjectError(f"{path} is {reprlib.repr(value)}, expected an object")
        self.path = path
        self._left = {key: item for key, item in value.items() if item is not None}

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def names(self) -> list[str]:
        return list(self._left)

    def text(self, key: str, default: str = "", *, required: bool = False) -> str:
        value = self._take(key, default, required)
        if not isinstance(value, str):
            raise self._wrong(key, value, "text (put it in quotes)")
        return value

    def number(self, key: str, low: int, high: int, default: int = 0) -> int:
        value = self._take(key, default, False)
        if isinstance(value, bool) or not isinstance(value, int) or not (low <= value <= high or value == default):
            raise self._wrong(key, value, f"a whole number from {low} to {high}")
        return value

    def flag(self, key: str) -> bool:
        value = self._take(key, False, False)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def texts(self, key: str) -> list[str]:
        value = self._take(key, [], False)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(key, value, "a list of texts")
        return value

    def spec(self, key: str, *, required: bool = False) -> "Spec":
        """An object; an empty one when absent."""
        return Spec(self._take(key, {}, required), f"{self.path}.{key}")

    def specs(self, key: str) -> list["Spec"]:
        value = self._take(key, [], False)
        if not isinstance(value, list):
            raise self._wrong(key, value, "a list")
        return [Spec(item, f"{self.path}.{key}[{index}]") for index, item in enumerate(value)]

    def ignore(self, *keys: str) -> list[str]:
        """Takes fields without effect here; the paths of those that were there."""
        return [f"{self.path}.{key}" for key in keys if self._left.pop(key, None) is not None]

    def end(self) -> None:
        """Raises ObjectError when a field is left that nobody took."""
        if self._left:
            raise ObjectError(f"{self.path}.{next(iter(self._left))} is not supported")

    def _take(self, key: str, default: Any, required: bool) -> Any:
        if required and key not in self._left:
            raise ObjectError(f"{self.path}.{key} is missing")
        return self._left.pop(key, default)

    def _wrong(self, key: str, value: object, expected: str) -> ObjectError:
        return ObjectError(f"{self.path}.{key} is {reprlib.repr(value)}, expected {expected}")
