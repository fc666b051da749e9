"""Where records are kept."""

import random

from services.discovery.core.backoff import Backoff
from services.discovery.core.contacts import COPIES, Contact, Endpoint, nearest
from services.discovery.core.model import node_id


def test_configured_contacts_come_first_and_the_rest_by_nearness() -> None:
    relays = [Contact(f"n{i}", (Endpoint("10.0.0.1", 20008),)) for i in range(200)]
    named = Contact("r1", (Endpoint("10.0.0.2", 20008),), configured=True)
    chosen = nearest("default", "me", [*relays, named, Contact("nowhere", ())])
    assert chosen[0] is named and len(chosen) == 1 + COPIES
    distances = [node_id("default", contact.node_name) ^ node_id("default", "me") for contact in chosen[1:]]
    assert distances == sorted(distances)
    assert max(distances) < min(
        node_id("default", c.node_name) ^ node_id("default", "me") for c in relays if c not in chosen
    )


def test_who_publishes_and_who_asks_choose_the_same() -> None:
    relays = [Contact(f"n{i}", (Endpoint("10.0.0.1", 20008),)) for i in range(100)]
    shuffled = random.Random(1).sample(relays, len(relays))
    assert nearest("default", "subject", relays) == nearest("default", "subject", shuffled)


def test_backoff_doubles_up_to_its_limit() -> None:
    backoff = Backoff(1.0, 30.0, random.Random(1))
    waits = [backoff.next() for _ in range(8)]
    for wait, middle in zip(waits, (1, 2, 4, 8, 16, 30, 30, 30), strict=True):
        assert 0.75 * middle <= wait <= 1.25 * middle
    backoff.reset()
    assert backoff.next() <= 1.25
