"""Simulated networks on one machine: namespaces, NATs, wires, and Causeway nodes inside them."""
