"""The table of real clients: what applications make of a mesh between them and their servers.

`python -m lab.clients` (or `make clients`) builds a simulated network with real nodes in it and starts well-known servers
at b. Their well-known clients at a then go through services of the mesh: once with a punched path between two
port-restricted NATs, once with a relayed path between two symmetric ones.

| client        | server               | what is tried                                                               |
|---------------|----------------------|-----------------------------------------------------------------------------|
| curl, h2load  | nginx                | HTTP/1.1: keep-alive, ranges, 100-continue, chunks both ways; HTTP/2; loads |
| grpcio        | grpcio               | all four kinds of calls, deadline, cancellation, errors, 8 MiB, a load      |
| websockets    | websockets           | pings both ways, close codes both ways, fragments, 16 MiB                   |
| psql, pgbench | PostgreSQL           | transactions, a connection for each of them, COPY, cancelling a query       |
| redis         | redis-server         | redis-benchmark with and without pipelining, large values                   |
| iperf3        | iperf3               | TCP and UDP, up and down                                                    |
| dig           | dnsmasq              | UDP, TCP, truncation, many queries                                          |
| ssh, scp      | sshd                 | commands, files both ways, through `causeway nc` and through a service      |

Each of them is a `Case` in a file of its own. Servers run without any rights (`Machine.start`), their files are in a
temporary folder. A row of the table counts only if it ran over the path for which it stands.
"""
