"""Prometheus metrics of the tunnel. The stall histogram is the product's figure of merit."""

from prometheus_client import Counter, Gauge, Histogram

from services.runtime.core import buckets
from services.runtime.tally import Tally, Timings

STALL = Histogram(
    "causeway_stream_stall_seconds",
    "Time during which a session's open streams stood still, by cause.",
    ["cause"],
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60),
)
SESSIONS = Gauge("causeway_tunnel_sessions", "Sessions with other nodes.")
LINKS = Gauge("causeway_tunnel_links", "Links by kind of path.", ["path"])
STREAMS = Gauge("causeway_tunnel_streams_open", "Streams open now.")
STREAMS_TOTAL = Tally("causeway_tunnel_streams", "Streams since the start.", ["direction", "network"])
BYTES = Tally(
    "causeway_tunnel_bytes", "Plain bytes of streams carried, by service and path.", ["direction", "service", "path"]
)
FIRST_BYTE = Timings(
    "causeway_tunnel_first_byte_seconds",
    "From when a client's socket came here until the first byte or datagram for it did.",
    ["service", "path"],
    bounds=buckets.FIRST_BYTE,
)
ERRORS = Counter(
    "causeway_tunnel_stream_errors",
    "Streams that were not possible, or did not end in order (reset), by service, path and reason.",
    ["service", "path", "reason"],
)
SWITCHES = Counter("causeway_tunnel_path_switches", "Changes of the active link.")
MIGRATIONS = Counter(
    "causeway_tunnel_relay_migrations",
    "Sessions that this node began and that went to another relay: better, load, drain, failover, return.",
    ["reason"],
)
PROBES = Counter("causeway_tunnel_relay_probes", "Probes of relays, by outcome.", ["outcome"])
RESENT = Counter("causeway_tunnel_records_resent", "Records sent again on another link.")
REVALIDATIONS = Counter(
    "causeway_tunnel_revalidations", "Times that all paths were asked and all backoffs forgotten, by cause.", ["cause"]
)
ROTATIONS = Counter(
    "causeway_tunnel_rotations",
    "Connections replaced before a NAT would have cut them: links, relay controls.",
    ["what"],
)
HALF_OPEN = Gauge("causeway_tunnel_half_open", "Inbound connections that have not proved who they are.")
REJECTED = Counter("causeway_tunnel_rejected", "Handshakes refused, by reason.", ["reason"])
RESERVATIONS = Gauge("causeway_tunnel_reservations", "Relays on which this node holds a reservation.")
