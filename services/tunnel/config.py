"""The tunnel's settings, taken from the one schema."""

from dataclasses import dataclass
from pathlib import Path

from services.runtime.config import Config

MAX_HALF_OPEN = 256
"""Inbound connections that have not proved who they are; beyond, the oldest is closed."""
HANDSHAKE_TIMEOUT = 10.0
"""Seconds for a handshake or a join."""
MAX_WAITING = 4096
"""Streams that wait for a session, or for the local proxy, in all."""
RELAYS_HELD = 3
"""Reservations: two survive the loss of one relay, the third makes the loss of two harmless (DESIGN §5: 2-3)."""
RELAYS_COMMON = 2
"""Reservations more, for the sake of peers that hold none in common with us and may reach no other relay."""
RELAYS_ASKED = 12
"""Relays asked for a reservation while some of them do not answer."""
OPEN_TIMEOUT = 15.0
"""Seconds a new stream waits for a path."""
SESSION_IDLE = 300.0
"""Seconds without streams after which the initiator ends a session."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Times in seconds, sizes in bytes."""

    node_name: str
    cluster: str
    run_dir: Path
    state_dir: Path
    listen_address: str
    """IP to listen on and to dial from; empty: all interfaces."""
    listen_port: int
    """0: does not listen."""
    port_mapping: bool
    """Ask the gateway to let connections in."""
    udp_idle: float
    """Without a datagram until a UDP flow ends."""
    session_hold: float
    max_sessions: int
    max_streams: int
    resend_bytes: int
    node_bytes: int

    @classmethod
    def of(cls, config: Config) -> "Settings":
        tunnel = config.modules.edge_tunnel
        return cls(
            node_name=config.node_name,
            cluster=config.cluster,
            run_dir=config.run_dir,
            state_dir=config.state_dir,
            listen_address=config.listen_address,
            listen_port=tunnel.listen_port,
            port_mapping=tunnel.port_mapping.enable,
            udp_idle=config.modules.edge_proxy.udp_idle_seconds,
            session_hold=tunnel.session_hold_seconds,
            max_sessions=tunnel.max_sessions,
            max_streams=tunnel.max_streams,
            resend_bytes=tunnel.resend_buffer_mib << 20,
            node_bytes=tunnel.node_buffer_mib << 20,
        )
