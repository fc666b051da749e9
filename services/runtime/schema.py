"""What pydantic finds wrong with a file, as problems; and walking its models by the names that the file uses."""

from collections.abc import Callable
from typing import Any, get_args

from pydantic import BaseModel

from services.runtime.document import KeyPath
from services.runtime.problems import Problem, nearest, show

Meant = Callable[[KeyPath], tuple[str, str]]
"""For an unknown key: the valid one it probably stands for (or empty), and the phrase for what would be valid."""

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text (put it in quotes)",
    "list_type": "a list",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "path_type": "a path",
}


def problem(file: str, item: Any, line: int, meant: Meant) -> Problem:
    """One entry of `ValidationError.errors()` as a problem."""
    location: KeyPath = item["loc"]
    key = dotted(location)
    kind: str = item["type"]
    value = item["input"]
    if kind == "extra_forbidden":
        name, valid = meant(location)
        return Problem(file, key, "unknown key", "" if name else valid, name, line)
    if kind == "missing":
        return Problem(file, key, "missing", "a value", line=line)
    if kind == "value_error":
        # An outermost mapping tells nothing that the message does not tell.
        return Problem(file, key, show(value), str(item["ctx"]["error"]), line=line)
    if kind == "literal_error":
        choices = item["ctx"]["expected"]
        return Problem(file, key, show(value), f"one of {choices}", nearest(str(value), choices.split("'")[1::2]), line)
    return Problem(file, key, show(value), _EXPECTED.get(kind, item["msg"].removeprefix("Input should be ")), line=line)


def dotted(location: KeyPath) -> str:
    """A key path as people write it: modules.edgeTunnel.relayNodes[0]."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def line_of(lines: dict[KeyPath, int], location: KeyPath) -> int:
    """The line of a key, or of the nearest one around it; 0 when unknown."""
    for end in range(len(location), 0, -1):
        if location[:end] in lines:
            return lines[location[:end]]
    return 0


def aliases(model: type[BaseModel]) -> list[str]:
    """The names of a model's fields in the file."""
    return [field.alias or name for name, field in model.model_fields.items()]


def children(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The fields that are models, or lists or mappings of them."""
    found: dict[str, type[BaseModel]] = {}
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found[field.alias or name] = kind
    return found
