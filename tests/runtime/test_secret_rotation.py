"""A cluster's secret is replaced while its nodes run: who accepts whom at which step, and what is said to the late."""

import errno
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import yaml

from services.runtime import authority, config, files, keystore
from services.runtime.diagnosis import diagnose
from services.runtime.identity import Identity, IdentityError, Rejection
from tests.runtime.nodes import OTHER_PSK, PSK, Clock, identity, load
from tests.runtime.test_grpc import ping, served

OLD, NEW = PSK, OTHER_PSK
STEPS = [(OLD,), (OLD, NEW), (NEW, OLD), (NEW,)]
"""What a node accepts, the first of which it issues under: each step on all nodes before the next."""


def holding(folder: Path, name: str, *secrets: str) -> config.Config:
    """The configuration of a node with these secrets, each in a file of its own."""
    loaded = load(folder, name)
    assert loaded.source is not None
    paths = []
    for secret in secrets:
        path = loaded.source.parent / f"psk-{secret[:5]}"
        path.write_text(secret + "\n")
        paths.append(path.name)
    keys = yaml.safe_load(loaded.source.read_text())
    keys["modules"]["edgeTunnel"] = {"psk": {"path": paths[0], "acceptPaths": paths[1:]}}
    loaded.source.write_text(yaml.safe_dump(keys))
    return config.load(loaded.source)


def accepts(judge: Identity, other: Identity) -> bool:
    try:
        return judge.judge(other.certificate_der) == other.node_name
    except Rejection as rejection:
        assert rejection.reason == "wrong-psk"
        return False


def test_neighbouring_steps_accept_each_other_and_no_others(short_path: Path) -> None:
    nodes = [Identity.load(holding(short_path, f"n{number}", *step)) for number, step in enumerate(STEPS)]
    for (i, judge), (j, other) in product(enumerate(nodes), repeat=2):
        expected = STEPS[j][0] in STEPS[i]
        assert accepts(judge, other) is expected
        if abs(i - j) <= 1:
            assert expected, "a rotation goes from step to step without a moment of strangers"


def test_a_running_node_goes_through_all_steps(short_path: Path) -> None:
    a = Identity.load(holding(short_path, "a", OLD))
    shown = []
    for step in STEPS[1:]:
        generation = a.generation
        a.reconfigure(holding(short_path, "a", *step))
        assert a.generation == generation + 1
        shown.append(a.certificate_der)
        assert not a.refresh()
        assert accepts(a, a)
    added, first, alone = shown
    assert added != first, "the certificate is issued under the first secret"
    assert first == alone, "to give the old one up changes nothing for others"
    # After a restart it is the same one.
    assert Identity.load(holding(short_path, "a", NEW)).certificate_der == alone


def test_the_services_of_a_node_agree_on_one_certificate(short_path: Path) -> None:
    services = [Identity.load(holding(short_path, "a", OLD)) for _ in range(4)]
    wanted = holding(short_path, "a", NEW, OLD)
    for service in services:
        service.reconfigure(wanted)
    assert len({service.certificate_der for service in services}) == 1


def test_who_is_late_is_told_so_and_strangers_are_not(short_path: Path) -> None:
    a = Identity.load(holding(short_path, "a", OLD))
    for step in STEPS[1:]:
        a.reconfigure(holding(short_path, "a", *step))
    late = Identity.load(holding(short_path, "late", OLD))
    stranger = identity(short_path, "stranger", psk="a-third-psk-00000-abcdefghijklm")
    restarted = Identity.load(holding(short_path, "a", NEW))
    for judge in (a, restarted):
        with pytest.raises(Rejection, match="late still uses a PSK that was replaced") as caught:
            judge.judge(late.certificate_der)
        assert caught.value.reason == "wrong-psk"
        with pytest.raises(Rejection, match="do not have the same PSK"):
            judge.judge(stranger.certificate_der)
    with pytest.raises(Rejection, match="one of the two has not got the new one"):
        late.judge(a.certificate_der)


def test_a_secret_that_cannot_be_used_changes_nothing(short_path: Path) -> None:
    a = Identity.load(holding(short_path, "a", OLD))
    before, generation = a.certificate_der, a.generation
    wanted = holding(short_path, "a", NEW, OLD)
    wanted.modules.edge_tunnel.psk.path.unlink()
    with pytest.raises(IdentityError, match="there is no PSK"):
        a.reconfigure(wanted)
    assert (a.certificate_der, a.generation) == (before, generation)
    assert not a.refresh()
    wanted.modules.edge_tunnel.psk.path.write_text(NEW)
    a.reconfigure(wanted)
    assert accepts(Identity.load(holding(short_path, "b", NEW)), a)


def test_edgemesh_configuration_is_accepted(short_path: Path) -> None:
    loaded = load(short_path, "a", tunnel={"psk": {"enable": True, "path": str(short_path / "default.a/psk")}})
    assert loaded.modules.edge_tunnel.psk.accept_paths == []
    assert Identity.load(loaded).node_name == "a"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_cannot_be_written_does_not_end_a_node_that_worked(
    short_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    clock = Clock()
    a, b = identity(short_path, "a", clock), identity(short_path, "b", clock)
    before = a.certificate_der

    def refuse(*_: object) -> None:
        raise OSError(error, "no")

    monkeypatch.setattr(files, "write_atomically", refuse)
    clock.now += 60_000  # 2/3 of a day is 57,600 s
    assert a.refresh()
    assert a.certificate_der != before and accepts(b, a)
    assert not a.refresh(), "one certificate is enough"
    again = identity(short_path, "a", clock)
    assert accepts(b, again) and again.certificate_der != before
    monkeypatch.undo()
    clock.now += 60_000
    assert a.refresh()
    assert identity(short_path, "a", clock).certificate_der == a.certificate_der
    monkeypatch.setattr(files, "write_atomically", refuse)
    if error == errno.ENOSPC:  # room may return: the key waits in memory until then
        assert accepts(b, identity(short_path, "new", clock))
    else:
        with pytest.raises(IdentityError, match="set stateDir"):
            identity(short_path, "new", clock)


def test_former_secrets_are_remembered_up_to_a_bound(short_path: Path) -> None:
    secrets = [f"secret number {number} of many, abcdefgh" for number in range(keystore.MAX_RETIRED + 4)]
    a = Identity.load(holding(short_path, "a", secrets[0]))
    for secret in secrets[1:]:
        a.reconfigure(holding(short_path, "a", secret))
    assert len(a.credentials.retired) == keystore.MAX_RETIRED
    newest = authority.from_psk(secrets[-2].encode(), "default").certificates[0]
    assert a.credentials.retired[0] == newest


async def test_grpc_goes_through_all_steps(short_path: Path, loopback_ip: Callable[[], str]) -> None:
    """One server, never restarted, and a client that goes one step ahead of it and comes one step behind."""
    ip = loopback_ip()
    server = Identity.load(holding(short_path, "server", OLD))
    clients = [Identity.load(holding(short_path, f"n{number}", *step)) for number, step in enumerate(STEPS)]
    async with served(server, ip) as port:
        for number, step in enumerate(STEPS):
            server.reconfigure(holding(short_path, "server", *step))
            for client in clients[max(0, number - 1) : number + 2]:
                assert await ping(client, ip, port, "server")
        said = await diagnose(clients[0], ip, port, "server")
        assert "wrong-psk" in said and "one of the two has not got the new one" in said
