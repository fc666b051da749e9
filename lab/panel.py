"""The patch panel: wires between namespaces, and the process that carries their frames."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from typing import Any

from lab.child import Child
from lab.namespace import LabError, Namespace, connect
from lab.wire import Shape, describe


class Wire:
    """One wire; `forward` is the direction from the first namespace to the second."""

    def __init__(self, panel: Panel, number: int, forward: Shape, backward: Shape) -> None:
        self._panel = panel
        self._number = number
        self.forward = forward
        self.backward = backward

    def shape(self, forward: Shape, backward: Shape | None = None) -> None:
        """Changes both directions; the second defaults to the first."""
        self.forward, self.backward = forward, backward or forward
        self._panel.ask("shape", self._number, forward=describe(self.forward), backward=describe(self.backward))

    def cut(self, *, forward: bool = True, backward: bool = True) -> None:
        """Makes directions dark: nobody is told, everything vanishes."""
        self.shape(
            dataclasses.replace(self.forward, dark=self.forward.dark or forward),
            dataclasses.replace(self.backward, dark=self.backward.dark or backward),
        )

    def mend(self) -> None:
        """Both directions carry again."""
        self.shape(dataclasses.replace(self.forward, dark=False), dataclasses.replace(self.backward, dark=False))

    def count(self) -> dict[str, dict[str, int]]:
        """Frames, bytes and dropped frames of each direction since the start."""
        counts: dict[str, dict[str, int]] = self._panel.ask("count", self._number)
        return counts


class Panel:
    """Makes wires. One process carries them all, in a namespace of its own."""

    def __init__(self) -> None:
        self.namespace = Namespace("wires")
        self.namespace.sysctl("ipv6/conf/default/disable_ipv6", 1)  # wires carry frames, they send none
        self._numbers = itertools.count()
        self._process = Child([sys.executable, "-m", "lab.wire"], output=None, namespace=self.namespace)

    def wire(
        self, a: Namespace, a_name: str, b: Namespace, b_name: str, forward: Shape, backward: Shape | None = None
    ) -> Wire:
        """Joins two namespaces by a wire; `backward` defaults to `forward`."""
        number = next(self._numbers)
        left, right = f"w{number}a", f"w{number}b"
        connect(a, a_name, self.namespace, left)
        connect(b, b_name, self.namespace, right)
        wire = Wire(self, number, forward, backward or forward)
        self.ask("add", number, a=left, b=right, forward=describe(wire.forward), backward=describe(wire.backward))
        return wire

    def ask(self, op: str, number: int, **fields: Any) -> Any:
        """One question to the process and its answer."""
        self._process.stdin.write(json.dumps({"op": op, "id": number, **fields}).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise LabError(f"the wire process ended with {self._process.code}; see its standard error above")
        answer = json.loads(line)
        if "error" in answer:
            raise LabError(f"wire {number}: {op}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Ends the process and lets its namespace go."""
        self._process.kill()
        self.namespace.close()
