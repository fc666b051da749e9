"""What the command lines of the lab's programs take, for argparse's `type=`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")


def some_of(known: Mapping[str, T]) -> Callable[[str], tuple[T, ...]]:
    """A parser of "a,b", in whatever case, that keeps the order of `known`, whose keys are in lower case."""

    def parse(text: str) -> tuple[T, ...]:
        names = [it for it in text.lower().split(",") if it]
        unknown = [it for it in names if it not in known]
        if unknown or not names:
            raise argparse.ArgumentTypeError(
                f"got {', '.join(unknown) or 'nothing'}, expected some of {', '.join(known)}"
            )
        return tuple(it for name, it in known.items() if name in names)

    return parse
