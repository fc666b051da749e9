"""The relay service: reservations, and circuits spliced in the kernel."""
