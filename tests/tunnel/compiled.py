"""`pytest -p tests.tunnel.compiled …`: tests of the data path, compiled."""

from services.tunnel import native

if not native.use():
    raise RuntimeError("the data path is not compiled, or was imported before")
