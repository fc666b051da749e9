"""DNS: dig asks dnsmasq."""

from __future__ import annotations

import re

from lab.clients.case import Case, Machine, Port, Use, expect

PORT = Port(5353)
NAME, ADDRESS = "host.example.test", "192.0.2.7"
LONG = "x" * 250  # one string of a TXT record holds 255 bytes
STRINGS = 6


class Dns(Case):
    """One server for both protocols."""

    name = "DNS"
    tools = ("dig", "dnsmasq")
    ports = (PORT, Port(PORT.number, "UDP"))

    async def serve(self, machine: Machine) -> None:
        options = ["--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--bind-interfaces"]
        options += [f"--listen-address={machine.address}", f"--port={PORT.number}", "--pid-file=", "--log-facility=-"]
        options += [f"--address=/{NAME}/{ADDRESS}", "--local=/test/", "--edns-packet-max=4096"]
        options.append("--txt-record=long.test," + ",".join([LONG] * STRINGS))
        machine.start("dnsmasq", ["dnsmasq", *options])

    async def run(self, use: Use) -> None:
        async def dig(*arguments: str) -> str:
            to = [f"@{use.address}", "-p", str(PORT.number), "+tries=3", "+timeout=15"]
            return await use.client.call("dig", *to, *arguments)

        async def address(*arguments: str) -> str:
            said = await dig(NAME, "A", *arguments)
            expect(ADDRESS in said, f"no {ADDRESS} in the answer: {said[-300:]}")
            took = re.search(r"Query time: (\d+) msec", said)
            return f"{took[1] if took else '?'} ms"

        async def long(*arguments: str) -> str:
            said = await dig("long.test", "TXT", *arguments)
            expect(said.count(LONG) == STRINGS, f"{said.count(LONG)} of {STRINGS} strings came: {said[-300:]}")
            truncated = "Truncated, retrying in TCP mode" in said
            expect(truncated == ("+noedns" in arguments), "truncated" if truncated else "not truncated")
            return "again over TCP" if truncated else "1.5 kB in one datagram"

        async def many() -> str:
            count = 100 if use.brief else 1000
            questions = use.client.folder / "questions"
            questions.write_text(f"{NAME} A\n" * count)
            said = await dig("+short", "-f", str(questions))
            answers = [line for line in said.splitlines() if not line.startswith(";;")]
            expect(answers == [ADDRESS] * count, f"not {count} answers of {ADDRESS}: {said[-300:]}")
            again = said.count("timed out")
            return f"{count} queries" + (f", {again} asked again" if again else "")

        await use.attempt("UDP", address)
        await use.attempt("TCP", lambda: address("+tcp"))
        await use.attempt("large answer", lambda: long("+bufsize=4096"))
        await use.attempt("truncated answer", lambda: long("+noedns"))
        await use.attempt("many, UDP", many)
