"""The DHT with thousands of nodes in one process: services/discovery/core as it is, time and network simulated.

A question and its answer are one event, a random round trip after the question; whoever is gone, behind a NAT or silent
costs its asker a timeout. Nodes come one after the other through three first contacts, as real ones do; only what
happens after that counts. Everything depends on the seed alone.

A lookup succeeds when it finds a valid record that is at least as new as what its subject had published when the
lookup began. Messages are questions and answers, counted at their sender. State is what one node holds, every object
counted, as if no other node shared it.
"""
