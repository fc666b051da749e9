"""The manifest file, watched: editors that replace it, ConfigMap volumes that swap a link, mistakes."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from protos import discovery_pb2 as pb
from services.discovery.core import lastgood
from services.discovery.sources import servicefile
from services.discovery.sources.servicefile import ServiceFile

from ..conftest import WriteConfig
from .nodes import part, running, until
from .test_manifests import WEB


def manifest(ip: str) -> str:
    return WEB.replace("127.1.0.1", ip)


@pytest.fixture
def source(node_config: WriteConfig, tmp_path: Path) -> ServiceFile:
    path = tmp_path / "services.yaml"
    path.write_text(manifest("127.1.0.1"))
    return ServiceFile(part(node_config("a")).directory, path)


def cluster_ip(source: ServiceFile) -> str:
    service = source._directory.services.get("default/web")
    assert service is not None
    return service.cluster_ips[0]


def test_a_replaced_file_is_read_again(source: ServiceFile, tmp_path: Path) -> None:
    source.look()
    assert cluster_ip(source) == "127.1.0.1"
    revision = source._directory.services.revision
    source.look()
    (tmp_path / "services.yaml").write_text(manifest("127.1.0.1"))  # touched, but the same
    source.look()
    assert source._directory.services.revision == revision
    (tmp_path / "new").write_text(manifest("127.1.0.2"))
    (tmp_path / "new").replace(tmp_path / "services.yaml")
    source.look()
    assert cluster_ip(source) == "127.1.0.2"
    assert source._directory.board.sources["servicesFile"] == "1 services"


def test_a_configmap_swap_is_read_again(node_config: WriteConfig, tmp_path: Path) -> None:
    # As the kubelet does it: services.yaml → ..data/services.yaml, ..data → ..timestamp, swapped by rename.
    for name, ip in (("..1", "127.1.0.1"), ("..2", "127.1.0.2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "services.yaml").write_text(manifest(ip))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "services.yaml").symlink_to("..data/services.yaml")
    source = ServiceFile(part(node_config("a")).directory, tmp_path / "services.yaml")
    source.look()
    assert cluster_ip(source) == "127.1.0.1"
    (tmp_path / "..tmp").symlink_to("..2")
    (tmp_path / "..tmp").replace(tmp_path / "..data")
    source.look()
    assert cluster_ip(source) == "127.1.0.2"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (manifest("nowhere"), "document 1 (Service web): spec.clusterIP: 'nowhere'"),
        ("kind: Service\nmetadata: [", "line 3, column 1: not YAML: "),
        ("- 1\n- 2\n", "document 1: found list, expected an object"),
        ("\x00", "unacceptable character"),
        ("[" * 30_000, "line 1, column 201: not YAML: nested more than 200 deep"),
        ("kind: !!bool foo", "line 1, column 7: not YAML: 'foo' is no bool"),
        (None, "no such file or directory; check servicesFile"),
    ],
)
def test_a_bad_file_changes_nothing_and_is_shown(source: ServiceFile, content: str | None, says: str) -> None:
    source.look()
    if content is None:
        source._path.unlink()
    else:
        source._path.write_text(content)
    source.look()
    board = source._directory.board
    assert cluster_ip(source) == "127.1.0.1"
    text = board.sources["servicesFile"]
    assert text.startswith("error: ") and says in text and text.endswith("the 1 services read before stay")
    assert "\n" not in text and len(board.warnings) == 1
    source._path.write_text(manifest("127.1.0.3"))
    source.look()
    assert cluster_ip(source) == "127.1.0.3" and not board.warnings


def test_a_service_that_is_wrong_stays_as_it_was_and_keeps_out_no_other(source: ServiceFile) -> None:
    other = manifest("127.1.0.8").replace("name: web", "name: other")
    source.look()
    source._path.write_text(manifest("nowhere") + "---" + other)
    source.look()
    store, board = source._directory.services, source._directory.board
    assert {one.name: one.cluster_ips for one in store.values()} == {"web": ("127.1.0.1",), "other": ("127.1.0.8",)}
    assert board.sources["servicesFile"] == "2 services; 1 objects are wrong and not used, see the warnings"
    (warning,) = board.warnings
    assert "not used: document 1 (Service web): spec.clusterIP: 'nowhere'" in warning
    source._path.write_text(other)
    source.look()
    assert [one.name for one in store.values()] == ["other"]
    assert board.sources["servicesFile"] == "1 services" and not board.warnings


def test_a_file_that_is_too_large_is_refused(source: ServiceFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servicefile, "MAX_BYTES", 1 << 20)
    source._path.write_text(manifest("127.1.0.9") + "#" * (1 << 20))
    source.look()
    assert "it has more than 1 MiB" in source._directory.board.sources["servicesFile"]
    assert len(source._directory.services) == 0


# The last good file


Damage = Callable[[Path], None]


def remove(path: Path) -> None:
    path.unlink()


def break_(path: Path) -> None:
    path.write_text("kind: Service\nmetadata: [")


def obstruct(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [remove, break_, obstruct])
async def test_services_outlive_a_restart_without_their_file(
    node_config: WriteConfig, tmp_path: Path, damage: Damage
) -> None:
    path, config, clock = tmp_path / "services.yaml", node_config("a"), Clock()
    path.write_text(manifest("127.1.0.1"))
    first = started(config, path, clock)
    await first._keep()
    damage(path)
    clock.now += 200
    second = started(config, path, clock)
    assert cluster_ip(second) == "127.1.0.1"
    board = second._directory.board
    said = "; the 1 services that it had when it was last read are used"
    assert board.sources["servicesFile"].startswith("error: ")
    assert board.sources["servicesFile"].endswith(f"{said}, 3 min old")
    (warning,) = board.warnings
    assert warning.startswith(f"{path}: error: ") and warning.endswith(said)
    # A third start knows it still, and the file counts again as soon as it can be read.
    clock.now += 3 * 86_400
    third = started(config, path, clock)
    assert third._directory.board.sources["servicesFile"].endswith(f"{said}, 3 days old")
    if path.is_dir():
        path.rmdir()
    path.write_text(manifest("127.1.0.2"))
    third.look()
    assert cluster_ip(third) == "127.1.0.2" and not third._directory.board.warnings
    assert third._directory.board.sources["servicesFile"] == "1 services"


async def test_what_is_too_old_or_damaged_is_not_used(node_config: WriteConfig, tmp_path: Path) -> None:
    path, config, clock = tmp_path / "services.yaml", node_config("a"), Clock()
    path.write_text(manifest("127.1.0.1"))
    first = started(config, path, clock)
    await first._keep()
    path.unlink()
    clock.now += lastgood.MAX_AGE + 1
    late = started(config, path, clock)
    assert len(late._directory.services) == 0
    assert late._directory.board.sources["servicesFile"].endswith("; what it held 7 days ago is too old to be used")
    clock.now -= lastgood.MAX_AGE
    copy = first._copy.path
    copy.write_bytes(copy.read_bytes().replace(b"127.1.0.1", b"127.1.0.7"))
    damaged = started(config, path, clock)
    assert len(damaged._directory.services) == 0
    assert "is not used: its checksum is wrong" in damaged._directory.board.sources["servicesFile"]
    # And it is replaced by the next good one.
    path.write_text(manifest("127.1.0.3"))
    damaged.look()
    await damaged._keep()
    path.unlink()
    assert cluster_ip(started(config, path, clock)) == "127.1.0.3"


async def test_an_unchanged_file_is_noted_once_an_hour(node_config: WriteConfig, tmp_path: Path) -> None:
    path, clock = tmp_path / "services.yaml", Clock()
    path.write_text(manifest("127.1.0.1"))
    source = started(node_config("a"), path, clock)
    at = []
    for _ in range(5):
        await source._keep()
        kept = source._copy.load()
        assert kept is not None and kept.data == path.read_bytes()
        at.append(kept.at - Clock().now)
        clock.now += 1500
    assert at == [0, 0, 0, 4500, 4500]


class Clock:
    """Seconds since the Unix epoch, moved by hand."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0


def started(config: Path, path: Path, clock: Clock) -> ServiceFile:
    """The source of a discovery that has just been started."""
    source = ServiceFile(part(config, wall=lambda: clock.now).directory, path)
    source.look()
    return source


@pytest.mark.slow
async def test_watchers_see_services_come_change_and_go(node_config: WriteConfig, short_path: Path) -> None:
    path = short_path / "services.yaml"
    path.write_text(manifest("127.1.0.1"))
    config = node_config("a", modules={"edgeDiscovery": {"servicesFile": str(path), "mdns": {"enable": False}}})
    async with running(config) as (node,):
        known: dict[str, pb.Service] = {}
        seen: list[str] = []

        async def watch() -> None:
            async for event in node.stub.WatchServices(pb.WatchServicesRequest()):
                seen.append(event.WhichOneof("event"))
                if seen[-1] == "added":
                    known[f"{event.added.namespace}/{event.added.name}"] = event.added
                elif seen[-1] == "removed":
                    del known[event.removed]

        watching = asyncio.create_task(watch())
        try:

            async def synced() -> bool:
                return "synced" in seen

            await until(synced, "the snapshot is complete")
            assert seen == ["added", "synced"]
            web = known["default/web"]
            assert [(p.name, p.protocol, p.port, p.node_port, p.app_protocol) for p in web.ports] == [
                ("http", pb.PROTOCOL_TCP, 80, 30080, "kubernetes.io/h2c"),
                ("dns", pb.PROTOCOL_UDP, 53, 0, ""),
            ]
            assert [(e.addresses[0], e.node_name, e.ready) for e in web.endpoints] == [
                ("127.0.0.1", "edge-a", True),
                ("10.0.0.2", "edge-b", False),
                ("fd00::1", "edge-c", True),
            ]
            assert web.affinity_timeout.seconds == 10_800 and dict(web.labels) == {"app": "web"}

            path.write_text(
                manifest("127.1.0.2").replace("name: web,", "name: web2,").replace("-name: web}", "-name: web2}")
            )

            async def renamed() -> bool:
                return list(known) == ["default/web2"]

            await until(renamed, "web is web2 now")
            path.write_text("kind: Servce\n")

            async def refused() -> bool:
                status = await node.status()
                return "did you mean Service?" in status.sources["servicesFile"] and status.services == 1

            await until(refused, "the mistake is shown")
            assert list(known) == ["default/web2"]
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
