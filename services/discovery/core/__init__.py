"""Pure core of discovery: standard library only, no IO, no clock; `now` is always an argument (seconds since the Unix epoch)."""
