"""All clients of the table."""

from __future__ import annotations

from lab.clients.case import Case
from lab.clients.dns import Dns
from lab.clients.iperf import Iperf
from lab.clients.postgres import Postgres
from lab.clients.redis import Redis
from lab.clients.rpc import Rpc
from lab.clients.ssh import Ssh
from lab.clients.web import Web
from lab.clients.websocket import WebSocket

CASES: tuple[Case, ...] = (Web(), Rpc(), WebSocket(), Postgres(), Redis(), Iperf(), Dns(), Ssh())
