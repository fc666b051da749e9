"""The four services of a node, and the runtime they share."""
