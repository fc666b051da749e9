"""HTTP/1.1 and HTTP/2 in clear text: curl and h2load, nginx."""

from __future__ import annotations

import re
from pathlib import Path

from lab.clients import content
from lab.clients.case import Case, Machine, Port, Use, expect
from lab.clients.content import MIB

ONE, TWO = Port(8081), Port(8082)
CONFIGURATION = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_max_body_size 1g;
    client_body_temp_path {folder}/tmp; proxy_temp_path {folder}/tmp; fastcgi_temp_path {folder}/tmp;
    uwsgi_temp_path {folder}/tmp; scgi_temp_path {folder}/tmp;
    keepalive_requests 100000;
    gzip_types *;
    gzip_min_length 1;
    server {{
        listen {address}:{one};
        listen {address}:{two} http2;
        root {folder}/files;
        location /up/ {{ dav_methods PUT; }}
        location /zip/ {{ alias {folder}/files/; gzip on; }}
        location /ok {{ return 200 "ok"; }}
    }}
}}
"""


class Web(Case):
    """Both versions of the protocol from one server."""

    name = "HTTP"
    tools = ("nginx", "curl", "h2load")
    ports = (ONE, TWO)

    async def serve(self, machine: Machine) -> None:
        folder = machine.folder / "web"
        for part in ("tmp", "files/up"):
            (folder / part).mkdir(parents=True)
        (folder / "nginx.conf").write_text(
            CONFIGURATION.format(folder=folder, address=machine.address, one=ONE.number, two=TWO.number)
        )
        machine.start(
            "nginx", ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
        )

    async def run(self, use: Use) -> None:
        await _Visit(use).all()


class _Visit:
    def __init__(self, use: Use) -> None:
        self._use = use
        self._files = use.server.folder / "web/files"
        self._scratch = use.client.folder
        self._large = content.make(self._files / "large", (4 if use.brief else 64) * MIB)
        self._upload = self._scratch / "upload"
        content.make(self._upload, MIB)
        self._url = f"http://{use.address}:{ONE.number}"

    async def all(self) -> None:
        attempt = self._use.attempt
        await attempt("HTTP/1.1 keep-alive", self._keep_alive)
        await attempt("HTTP/1.1 ranges", self._ranges)
        await attempt("HTTP/1.1 100-continue", self._continue)
        await attempt("HTTP/1.1 chunks up", self._chunks_up)
        await attempt("HTTP/1.1 chunks down", self._chunks_down)
        await attempt("HTTP/1.1 download", lambda: self._download("--http1.1", self._url))
        await attempt("HTTP/1.1 h2load", lambda: self._load("--h1", "-c", "20", f"{self._url}/ok"))
        two = f"http://{self._use.address}:{TWO.number}"
        await attempt("HTTP/2 download", lambda: self._download("--http2-prior-knowledge", two))
        await attempt("HTTP/2 h2load", lambda: self._load("-c", "4", "-m", "20", f"{two}/ok"))

    async def _curl(self, *arguments: str) -> str:
        return await self._use.client.call("curl", "-sS", "--fail", "--noproxy", "*", "-m", "100", *arguments)

    async def _keep_alive(self) -> str:
        said = await self._curl("-w", "%{num_connects}\\n", *["-o", "/dev/null", f"{self._url}/ok"] * 5)
        expect(said.split() == ["1", "0", "0", "0", "0"], f"connections made for five requests: {said.split()}")
        return "5 requests, 1 connection"

    async def _ranges(self) -> str:
        got, middle = self._scratch / "range", len(self._large) // 2
        status = await self._curl(
            "-r", f"{middle}-{middle + 999}", "-w", "%{http_code}", "-o", str(got), f"{self._url}/large"
        )
        expect(status == "206", f"status {status} instead of 206")
        content.same(got, self._large[middle : middle + 1000])
        several = self._scratch / "ranges"
        await self._curl("-r", "0-9,100-109", "-o", str(several), f"{self._url}/large")
        expect(several.read_bytes().count(b"Content-Range:") == 2, "two ranges did not come in two parts")
        return "206"

    async def _continue(self) -> str:
        said = await self._curl(
            "-v",
            "-H",
            "Expect: 100-continue",
            "--expect100-timeout",
            "40",
            "-T",
            str(self._upload),
            f"{self._url}/up/a",
        )
        expect("< HTTP/1.1 100" in said, f"no 100 Continue: {said[-300:]}")
        content.same(self._files / "up/a", self._upload.read_bytes())
        return "100, then 201"

    async def _chunks_up(self) -> str:
        # An upload that begins without being asked to, unlike the one before.
        headers = ["-H", "Transfer-Encoding: chunked", "-H", "Expect:"]
        await self._curl(*headers, "-T", str(self._upload), f"{self._url}/up/b")
        content.same(self._files / "up/b", self._upload.read_bytes())
        return "1 MiB"

    async def _chunks_down(self) -> str:
        got = self._scratch / "chunks"
        said = await self._curl("--compressed", "-D", "-", "-o", str(got), f"{self._url}/zip/large")
        expect(re.search(r"transfer-encoding:\s*chunked", said, re.IGNORECASE), f"no chunks: {said[-300:]}")
        content.same(got, self._large)
        return f"{len(self._large) // MIB} MiB"

    async def _download(self, version: str, url: str) -> str:
        got: Path = self._scratch / "large"
        said = await self._curl(version, "-w", "%{http_version} %{speed_download}", "-o", str(got), f"{url}/large")
        found, speed = said.split()
        expect(found == ("2" if "2" in version else "1.1"), f"HTTP/{found} was spoken")
        content.same(got, self._large)
        return f"{float(speed) / MIB:.1f} MiB/s"

    async def _load(self, *arguments: str) -> str:
        count = 400 if self._use.brief else 20_000
        said = await self._use.client.call("h2load", "-n", str(count), *arguments)
        done = re.search(r"requests: .* (\d+) succeeded", said)
        expect(done and int(done[1]) == count, f"not all succeeded: {said[-400:]}")
        rate = re.search(r"([\d.]+) req/s", said)
        return f"{float(rate[1]) if rate else 0:.0f} requests/s"
