"""A key for what others note of something."""


class Life:
    """Lives as long as its owner, so that a WeakKeyDictionary forgets with it. The owner itself can't be the key: the classes
    that `native.py` compiles have no weak references."""

    __slots__ = ("__weakref__",)
