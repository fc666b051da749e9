"""What the proxy gives up with, and the names under which refusals are counted."""

# Reasons in GetStatusResponse.refused and in causeway_proxy_refused_total{reason=…}.
DENIED = "denied"  # inbound: policy
UNREACHABLE = "unreachable"  # inbound or same node: the backend does not answer
CONNECTION_REFUSED = "connection_refused"  # inbound or same node: the backend said no
LIMIT = "limit"  # too many dials at once, or hardly any descriptors left
NO_PATH = "no_path"  # accepted: no path to the backend's node
UNKNOWN_NODE = "unknown_node"  # accepted: nobody knows the backend's node
NO_ENDPOINT = "no_endpoint"  # accepted: no ready endpoint on a known node
NO_TUNNEL = "no_tunnel"  # accepted: the tunnel stayed away, or took no more
UNKNOWN = "unknown"  # by name: there is no such service, and nothing that may be a node
MALFORMED = "malformed"  # datagrams of a SOCKS client that follow no rule, fragments among them
HEAD_LATE = "head_late"  # accepted: the head of the request, which the policy needs, did not come in time
HEAD_TOO_LARGE = "head_too_large"  # accepted: it was longer than the proxy reads
OVERSIZE = "oversize"  # first datagrams of a flow that fit in no Attach message
OVERFLOW = "overflow"  # datagrams from more new clients than the proxy can hold
LATE = "late"  # datagrams that missed their flow
STRAY = "stray"  # connections to the port of the interception that no rule sent there
