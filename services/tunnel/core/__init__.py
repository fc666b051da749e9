"""The tunnel's pure core: bytes and time in, bytes and events out."""
