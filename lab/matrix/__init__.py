"""The kill matrix: what happens to a connection × what kind of connection it is → what its client notices.

`python -m lab.matrix` (or `make matrix`) builds simulated networks with real nodes in them, sends traffic from a to an
echo service at b, breaks something, and measures at a:

| traffic          | what is sent                                    | stall                                                |
|------------------|-------------------------------------------------|------------------------------------------------------|
| idle             | nothing, until the event has happened           | time from the first use to the answer                |
| request/response | TCP: 64 bytes every 10 ms, UDP: every 20 ms     | TCP: longest wait for an answer; UDP: longest gap    |
| bulk             | TCP: 2 or 16 Mbit/s, UDP: 1 Mbit/s              | longest time without a byte or a datagram            |

Each stall has what is normal on that path taken off: the median round trip before the event for waits, the pace of
sending for gaps. Requests do not wait for each other, so one that is sent during a stall counts with all of its wait.
A stall counts when it touches the time from the beginning of the event to the end of the run.

Each event has a limit for the 99th percentile (events.py). What the same connection shows in the same network when nothing
happens is added to it, on the path to which the event leads: a busy machine, or a lossy line, is not still by itself.

All content depends on its position, there and back, so that a byte that is lost, doubled or in the wrong place is found.
Idle connections have a session of their own run: beside others they would find the way mended.
"""
