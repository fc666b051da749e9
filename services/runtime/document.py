"""A YAML file as plain values, with the line of every key."""

from pathlib import Path
from typing import Any

import yaml

from services.runtime.loader import Loader
from services.runtime.problems import ConfigError, Problem

# A configuration larger than this is a mistake (Kubernetes refuses ConfigMaps over 1 MiB).
MAX_BYTES = 1 << 20

KeyPath = tuple[str | int, ...]


def read(path: Path, *, keep_nulls: bool = False) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """The mapping in the file and the line (from 1) of each key path. An empty file is an empty mapping.

    Keys without a value (`relayNodes:` with everything below it commented out) are left out, as Kubernetes
    does, unless keep_nulls. Raises ConfigError for a file that is missing, unreadable, not UTF-8, not YAML, or not a mapping.
    """
    name = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        expected = "a configuration file (all settings have defaults: an empty one will do)"
        raise _error(name, "no such file", expected) from error
    except OSError as error:
        raise _error(name, f"cannot be read: {error.strerror}", "a readable configuration file") from error
    if len(data) > MAX_BYTES:
        raise _error(name, f"larger than {MAX_BYTES} bytes", "a configuration file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _error(name, "not UTF-8 text", "YAML in UTF-8", data[: error.start].count(b"\n") + 1) from error
    lines: dict[KeyPath, int] = {}
    problems: list[Problem] = []
    try:
        loader = Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return {}, {}
            _walk(node, (), name, lines, problems, set())
            value = loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = ", ".join(part for part in (error.context, error.problem) if part)
        line = mark.line + 1 if mark else 0
        raise _error(name, f"not YAML: {said}", "indentation by spaces and `key: value` pairs", line) from error
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise _error(name, f"not YAML: {' '.join(str(error).split())}", "") from error
    if problems:
        raise ConfigError(problems)
    if value is None:
        return {}, {}
    if not isinstance(value, dict):
        raise _error(name, f"found a {type(value).__name__}", "a mapping of keys such as `nodeName: edge-a`", 1)
    return (value if keep_nulls else without_nulls(value)), lines


def _error(file: str, found: str, expected: str, line: int = 0) -> ConfigError:
    return ConfigError([Problem(file, "", found, expected, line=line)])


def _walk(
    node: yaml.Node, path: KeyPath, file: str, lines: dict[KeyPath, int], problems: list[Problem], seen: set[int]
) -> None:
    if id(node) in seen:
        # Aliases can nest into themselves or multiply without bound, and a configuration needs none.
        key = ".".join(map(str, path))
        problems.append(Problem(file, key, "an alias (*name)", "the value itself", line=lines.get(path, 0)))
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        names: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            here = (*path, key.value)
            line = key.start_mark.line + 1
            if key.value in names:
                problems.append(Problem(file, ".".join(map(str, here)), "given twice", "each key once", line=line))
            names.add(key.value)
            lines[here] = line
            _walk(value, here, file, lines, problems, seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[*path, index] = item.start_mark.line + 1
            _walk(item, (*path, index), file, lines, problems, seen)


def without_nulls(value: Any) -> Any:
    """A value without the keys that have no value; all keys become text."""
    if isinstance(value, dict):
        return {str(key): without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    return value
