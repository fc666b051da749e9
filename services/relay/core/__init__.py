"""Decisions of the relay: no IO, no clock; time and randomness are arguments."""
