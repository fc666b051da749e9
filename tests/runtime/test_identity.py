"""Who a node is, and how it judges others."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from causeway.ca import ca
from services.runtime import authority
from services.runtime.config import Config
from services.runtime.identity import Identity, IdentityError, Rejection
from tests.runtime.nodes import OTHER_PSK, PSK, Clock, identity, load


def refusal(judge: Identity, certificate: bytes | None, expected: str = "") -> Rejection:
    with pytest.raises(Rejection) as caught:
        judge.judge(certificate, expected)
    assert "\n" not in caught.value.message
    assert str(caught.value) == caught.value.message
    return caught.value


# psk mode


def test_holders_of_one_psk_accept_each_other(short_path: Path) -> None:
    a, b = identity(short_path, "edge-a"), identity(short_path, "edge-b")
    assert a.judge(b.certificate_der) == "edge-b"
    assert b.judge(a.certificate_der, "edge-a") == "edge-a"
    assert a.credentials.authority.pem() == b.credentials.authority.pem()


def test_what_a_certificate_says(short_path: Path) -> None:
    clock = Clock()
    certificate = identity(short_path, "edge-a", clock, cluster="blue").credentials.certificate
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://blue/node/edge-a"]
    assert names.get_values_for_type(x509.DNSName) == ["edge-a.node.blue.causeway"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert {use.dotted_string for use in usage} == {"1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"}
    assert certificate.not_valid_before_utc.timestamp() == int(clock.now) - authority.CLOCK_SKEW
    assert certificate.not_valid_after_utc.timestamp() == int(clock.now) + 86400


def test_key_is_kept_and_private(short_path: Path) -> None:
    first, again = identity(short_path, "edge-a"), identity(short_path, "edge-a")
    assert again.certificate_der == first.certificate_der
    stored = short_path / "default.edge-a/state/identity/node.pem"
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600
    assert stat.S_IMODE(stored.parent.stat().st_mode) == 0o700
    for path in stored.parent.iterdir():
        assert PSK.encode() not in path.read_bytes(), "the PSK itself is never written"
    ca_key = authority.key_pem(authority.from_psk(PSK.encode(), "default").key or authority.new_key())
    assert ca_key not in stored.read_bytes()


def test_names_too_long_for_dns(short_path: Path) -> None:
    name = "a" * 60 + ".b" * 90
    a, b = identity(short_path, "edge-a"), Identity.load(load(short_path, "x").model_copy(update={"node_name": name}))
    assert a.judge(b.certificate_der) == name
    assert len(a.target_name(name)) <= 253


@pytest.mark.slow
def test_services_that_start_together_make_one_key(short_path: Path) -> None:
    load(short_path, "edge-a")
    program = (
        "import sys, hashlib; from pathlib import Path; from services.runtime import config, identity;"
        "i = identity.Identity.load(config.load(Path(sys.argv[1]))); print(hashlib.sha256(i.certificate_der).hexdigest())"
    )
    path = str(short_path / "default.edge-a/causeway.yaml")
    started = [
        subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    results = {process.communicate(timeout=60)[0] for process in started}
    assert len(results) == 1, results
    assert all(process.returncode == 0 for process in started)
    assert {path.name for path in (short_path / "default.edge-a/state/identity").iterdir()} == {"node.pem", "lock"}


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_damaged_store_is_replaced(short_path: Path, content: bytes) -> None:
    first = identity(short_path, "edge-a")
    (short_path / "default.edge-a/state/identity/node.pem").write_bytes(content)
    again = identity(short_path, "edge-a")
    assert again.certificate_der != first.certificate_der
    assert first.judge(again.certificate_der) == "edge-a"


def test_a_store_of_another_name_cluster_or_psk_is_replaced(short_path: Path) -> None:
    config = load(short_path, "edge-a")
    first = Identity.load(config)
    renamed = Identity.load(config.model_copy(update={"node_name": "edge-z"}))
    assert first.judge(renamed.certificate_der) == "edge-z"
    config.modules.edge_tunnel.psk.path.write_text(OTHER_PSK)
    assert refusal(first, Identity.load(config).certificate_der).reason == "wrong-psk"


def test_state_folder_that_cannot_be_written(short_path: Path) -> None:
    config = load(short_path, "edge-a").model_copy(update={"state_dir": Path("/proc/causeway")})
    with pytest.raises(IdentityError, match="set stateDir"):
        Identity.load(config)


def test_state_folder_that_is_a_file(short_path: Path) -> None:
    (short_path / "file").write_text("")
    config = load(short_path, "edge-a").model_copy(update={"state_dir": short_path / "file"})
    with pytest.raises(IdentityError, match="set stateDir"):
        Identity.load(config)


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        (None, "there is no PSK"),
        ("", "empty"),
        (" \n\n", "empty"),
        ("short", "too easy"),
        ("a" * 64, "too easy"),
        ("JugH9HP1XBouyO5pWGeZa8LtipDURrf17EJvUHcJGuQ=", "public"),
        ("x" * 5000, "larger"),
    ],
)
def test_psks_that_are_refused(short_path: Path, secret: str | None, said: str) -> None:
    config = load(short_path, "edge-a")
    path = config.modules.edge_tunnel.psk.path
    path.unlink()
    if secret is not None:
        path.write_text(secret)
    with pytest.raises(IdentityError) as caught:
        Identity.load(config)
    message = str(caught.value)
    assert said in message
    assert str(path) in message
    assert "causeway ca psk" in message
    assert "\n" not in message
    if secret and secret.strip():
        assert secret.strip() not in message


def test_generated_psk_is_good(short_path: Path) -> None:
    made = CliRunner().invoke(ca, ["psk"], catch_exceptions=False).output
    other = CliRunner().invoke(ca, ["psk"], catch_exceptions=False).output
    assert made != other
    assert identity(short_path, "edge-a", psk=made).node_name == "edge-a"


# Refusals, on both sides


def test_wrong_psk(short_path: Path) -> None:
    a, b = identity(short_path, "edge-a"), identity(short_path, "edge-b", psk=OTHER_PSK)
    for judge, judged in ((a, b), (b, a)):
        rejection = refusal(judge, judged.certificate_der, judged.node_name)
        assert rejection.reason == "wrong-psk"
        assert "edge-a" in rejection.message
        assert "edge-b" in rejection.message


@pytest.mark.parametrize("psk", [PSK, OTHER_PSK])
def test_wrong_cluster(short_path: Path, psk: str) -> None:
    a, b = identity(short_path, "edge-a"), identity(short_path, "edge-b", cluster="blue", psk=psk)
    for judge, judged in ((a, b), (b, a)):
        rejection = refusal(judge, judged.certificate_der)
        assert rejection.reason == "wrong-cluster"
        assert "'blue'" in rejection.message
        assert "'default'" in rejection.message


def test_expired(short_path: Path) -> None:
    a_clock, b_clock = Clock(), Clock()
    a, b = identity(short_path, "edge-a", a_clock), identity(short_path, "edge-b", b_clock)
    a_clock.now += 86400 - 2
    assert a.judge(b.certificate_der) == "edge-b"
    a_clock.now += 4
    rejection = refusal(a, b.certificate_der)
    assert rejection.reason == "certificate-expired"
    assert rejection.message.count("Z") == 2, "both times"


def test_not_yet_valid_with_the_stated_allowance(short_path: Path) -> None:
    a_clock, b_clock = Clock(), Clock()
    a, b = identity(short_path, "edge-a", a_clock), identity(short_path, "edge-b", b_clock)
    a_clock.now -= authority.CLOCK_SKEW - 2
    assert a.judge(b.certificate_der) == "edge-b"
    a_clock.now -= 4
    rejection = refusal(a, b.certificate_der)
    assert rejection.reason == "certificate-not-yet-valid"
    assert rejection.message.count("Z") == 2
    assert "10 min" in rejection.message


def test_name_mismatch(short_path: Path) -> None:
    a, b = identity(short_path, "edge-a"), identity(short_path, "edge-b")
    rejection = refusal(a, b.certificate_der, "edge-c")
    assert rejection.reason == "name-mismatch"
    assert "edge-b" in rejection.message
    assert "edge-c" in rejection.message


def test_no_certificate(short_path: Path) -> None:
    a = identity(short_path, "edge-a")
    assert refusal(a, None).reason == "no-certificate"
    assert refusal(a, b"").reason == "no-certificate"


def make(issuer: authority.Authority, uris: list[str], key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
    """A certificate by the true CA with whatever names: what a holder of the PSK could do by mistake."""
    assert issuer.key is not None
    proper = issuer.issue("default", "edge-x", authority.new_key().public_key(), Clock().now, 3600)
    builder = (
        x509.CertificateBuilder()
        .subject_name(proper.subject)
        .issuer_name(proper.issuer)
        .public_key((key or authority.new_key()).public_key())
        .serial_number(7)
        .not_valid_before(proper.not_valid_before_utc)
        .not_valid_after(proper.not_valid_after_utc)
    )
    if uris:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["spiffe://default/node/a", "spiffe://default/node/b"],
        ["https://default/node/a"],
        ["spiffe://default/a"],
        ["spiffe://default/node/"],
        ["spiffe://default/node/A"],
        ["spiffe://default/node/../a"],
        ["spiffe:///node/a"],
    ],
)
def test_certificates_that_name_no_node(short_path: Path, uris: list[str]) -> None:
    a = identity(short_path, "edge-a")
    assert refusal(a, make(a.credentials.authority, uris)).reason == "bad-certificate"


def test_curve_that_is_not_ours(short_path: Path) -> None:
    a = identity(short_path, "edge-a")
    key = ec.generate_private_key(ec.SECP384R1())
    rejection = refusal(a, make(a.credentials.authority, ["spiffe://default/node/b"], key))
    assert (rejection.reason, "P-256" in rejection.message) == ("bad-certificate", True)


def test_the_ca_certificate_is_no_node(short_path: Path) -> None:
    a = identity(short_path, "edge-a")
    der = a.credentials.authority.certificates[0].public_bytes(serialization.Encoding.DER)
    assert refusal(a, der).reason == "bad-certificate"


def test_a_node_cannot_issue(short_path: Path) -> None:
    a, b = identity(short_path, "edge-a"), identity(short_path, "edge-b")
    impostor = authority.Authority((b.credentials.certificate,), b.credentials.key)
    forged = impostor.issue("default", "edge-c", authority.new_key().public_key(), Clock().now, 3600)
    assert refusal(a, forged.public_bytes(serialization.Encoding.DER)).reason == "wrong-psk"


@given(data=st.binary(max_size=400))
def test_garbage_is_a_bad_certificate(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    a = _shared(tmp_path_factory)
    assert refusal(a, data).reason in ("bad-certificate", "no-certificate")


@given(position=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.integers(0, 10_000))
def test_damage_is_always_refused(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int, cut: int
) -> None:
    a = _shared(tmp_path_factory)
    der = bytearray(a.certificate_der)
    position %= len(der)
    if der[position] != value:
        der[position] = value
        with pytest.raises(Rejection):
            a.judge(bytes(der))
    with pytest.raises(Rejection):
        a.judge(a.certificate_der[: cut % len(der)])
    with pytest.raises(Rejection):
        a.judge(a.certificate_der + b"\0" * 20_000)


_cache: dict[str, Identity] = {}


def _shared(factory: pytest.TempPathFactory) -> Identity:
    if "a" not in _cache:
        _cache["a"] = identity(factory.mktemp("i"), "edge-a")
    return _cache["a"]


# Signatures


def test_signatures(short_path: Path) -> None:
    a, b = identity(short_path, "edge-a"), identity(short_path, "edge-b")
    signature = b.sign(b"record")
    assert a.verify(b.certificate_der, b"record", signature) == "edge-b"
    for certificate, data, signed in (
        (b.certificate_der, b"other", signature),
        (b.certificate_der, b"record", b"garbage"),
        (b.certificate_der, b"record", b""),
        (a.certificate_der, b"record", signature),
    ):
        with pytest.raises(Rejection) as caught:
            a.verify(certificate, data, signed)
        assert caught.value.reason == "bad-signature"
    stranger = identity(short_path, "edge-s", psk=OTHER_PSK)
    with pytest.raises(Rejection) as caught:
        a.verify(stranger.certificate_der, b"record", stranger.sign(b"record"))
    assert caught.value.reason == "wrong-psk"


# Renewal


def test_renews_at_two_thirds(short_path: Path) -> None:
    clock = Clock()
    a = identity(short_path, "edge-a", clock)
    first, generation = a.certificate_der, a.generation
    clock.now += 57_000  # 2/3 of a day is 57,600 s
    assert not a.refresh()
    assert a.certificate_der == first
    clock.now += 700
    assert a.refresh()
    assert a.certificate_der != first
    assert a.generation == generation + 1
    assert not a.refresh()


def test_takes_over_what_another_service_renewed(short_path: Path) -> None:
    clock = Clock()
    services = [identity(short_path, "edge-a", clock) for _ in range(4)]
    clock.now += 60_000
    assert [service.refresh() for service in services] == [True] * 4
    assert len({service.certificate_der for service in services}) == 1
    assert [service.refresh() for service in services] == [False] * 4


def test_renews_when_the_clock_was_set_back(short_path: Path) -> None:
    clock = Clock()
    a = identity(short_path, "edge-a", clock)
    clock.now -= 5000
    assert a.refresh()
    assert a.judge(a.certificate_der) == "edge-a"


def test_a_new_psk_is_taken_over_and_a_bad_one_is_not(short_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    a = identity(short_path, "edge-a")
    path = short_path / "default.edge-a/psk"
    path.write_text("short")
    with caplog.at_level("ERROR"):
        assert not a.refresh()
        assert not a.refresh()
    assert len(caplog.records) == 1, "said once"
    path.write_text(OTHER_PSK + "\n")
    assert a.refresh()
    assert a.judge(identity(short_path, "edge-b", psk=OTHER_PSK).certificate_der) == "edge-b"
    path.unlink()
    assert not a.refresh()
    path.write_text(OTHER_PSK + "\n\n")
    assert not a.refresh(), "the same secret in a new file changes nothing"


# ca mode


def run_ca(*arguments: str | Path) -> str:
    result = CliRunner().invoke(ca, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def node(folder: Path, name: str, authority_folder: Path | None = None) -> Identity:
    home = folder / f"default.{name}"
    run_ca("issue", name, "--ca", authority_folder or folder / "ca", "--out", home)
    return Identity.load(config_of(folder, name))


def config_of(folder: Path, name: str) -> Config:
    names = {"caFile": "ca.crt", "certFile": "node.crt", "keyFile": "node.key", "crlFile": "ca.crl"}
    return load(folder, name, tunnel={"ca": {"enable": True, **names}})


@pytest.fixture
def ca_folder(short_path: Path) -> Path:
    run_ca("init", "--out", short_path / "ca")
    return short_path


def test_ca_mode(ca_folder: Path) -> None:
    a, b = node(ca_folder, "edge-a"), node(ca_folder, "edge-b")
    assert a.judge(b.certificate_der) == "edge-b"
    assert b.judge(a.certificate_der) == "edge-a"
    assert not (ca_folder / "default.edge-a/state").exists()


def test_ca_mode_refuses_another_ca_and_a_psk(ca_folder: Path) -> None:
    a = node(ca_folder, "edge-a")
    run_ca("init", "--out", ca_folder / "ca2")
    for other in (node(ca_folder, "edge-b", ca_folder / "ca2"), identity(ca_folder, "edge-c")):
        rejection = refusal(a, other.certificate_der)
        assert (rejection.reason, "CA" in rejection.message) == ("bad-certificate", True)
    assert refusal(identity(ca_folder, "edge-d"), a.certificate_der).reason == "wrong-psk"


def test_revocation_is_honoured_when_the_list_arrives(ca_folder: Path) -> None:
    a, b = node(ca_folder, "edge-a"), node(ca_folder, "edge-b")
    assert a.judge(b.certificate_der) == "edge-b"
    run_ca("revoke", "edge-b", "--ca", ca_folder / "ca")
    (ca_folder / "default.edge-a/ca.crl").write_bytes((ca_folder / "ca/ca.crl").read_bytes())
    assert refusal(a, b.certificate_der).reason == "revoked"
    assert a.judge(a.certificate_der) == "edge-a"
    assert a.judge(node(ca_folder, "edge-b").certificate_der) == "edge-b", "a new certificate is not revoked"


def test_a_bad_revocation_list_changes_nothing(ca_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    a, b = node(ca_folder, "edge-a"), node(ca_folder, "edge-b")
    run_ca("revoke", ca_folder / "default.edge-b/node.crt", "--ca", ca_folder / "ca")
    mine = ca_folder / "default.edge-a/ca.crl"
    mine.write_bytes((ca_folder / "ca/ca.crl").read_bytes())
    assert refusal(a, b.certificate_der).reason == "revoked"
    run_ca("init", "--out", ca_folder / "ca2")
    for content in (b"garbage", (ca_folder / "ca2/ca.crl").read_bytes()):
        mine.write_bytes(content)
        assert refusal(a, b.certificate_der).reason == "revoked"
        (warning,) = a.warnings
        assert "ca.crl" in warning and "stays in force" in warning
    mine.unlink()
    assert not a.refresh()
    assert "cannot be read" in a.warnings[0]
    assert refusal(a, b.certificate_der).reason == "revoked"
    assert len(caplog.records) == 3
    mine.write_bytes((ca_folder / "ca/ca.crl").read_bytes())
    assert not a.refresh()
    assert not a.warnings


def test_a_node_does_not_start_without_its_revocation_list(ca_folder: Path) -> None:
    node(ca_folder, "edge-a")
    mine = ca_folder / "default.edge-a/ca.crl"
    for content, said in ((None, "cannot be read"), (b"garbage", "expected a PEM revocation list")):
        mine.unlink() if content is None else mine.write_bytes(content)
        with pytest.raises(IdentityError, match=said):
            Identity.load(config_of(ca_folder, "edge-a"))


def test_nobody_is_accepted_after_the_end_of_the_ca(ca_folder: Path) -> None:
    clock = Clock()
    a = node(ca_folder, "edge-a")
    b = Identity.load(config_of(ca_folder, "edge-a"), clock)
    # As other tools issue them: the certificate outlives its authority.
    key = authority.read_key(ca_folder / "ca/ca.key")
    issuer = authority.Authority(authority.read_certificates(ca_folder / "ca/ca.crt"), key)
    long = issuer.issue("default", "edge-c", authority.new_key().public_key(), clock.now, 9000 * 86400)
    der = long.public_bytes(serialization.Encoding.DER)
    assert b.judge(der) == a.judge(der) == "edge-c"
    clock.now += 3651 * 86400
    rejection = refusal(b, der)
    assert rejection.reason == "certificate-expired"
    assert "the cluster CA that issued the certificate of edge-c expired" in rejection.message
    home = ca_folder / "default.edge-a"
    mine = issuer.issue("default", "edge-a", a.credentials.key.public_key(), clock.now, 86400)
    (home / "node.crt").write_bytes(mine.public_bytes(serialization.Encoding.PEM))
    with pytest.raises(IdentityError, match="this CA expired"):
        Identity.load(config_of(ca_folder, "edge-a"), clock)


def test_ca_mode_takes_over_renewed_files(ca_folder: Path) -> None:
    a = node(ca_folder, "edge-a")
    first = a.certificate_der
    assert not a.refresh()
    run_ca("issue", "edge-a", "--ca", ca_folder / "ca", "--out", ca_folder / "default.edge-a")
    assert a.refresh()
    assert a.certificate_der != first
    (ca_folder / "default.edge-a/node.key").write_bytes(authority.key_pem(authority.new_key()))
    assert not a.refresh(), "a key that does not match is not taken over"
    assert a.judge(a.certificate_der) == "edge-a"


def test_ca_mode_asks_for_renewal_once(ca_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    node(ca_folder, "edge-a")
    clock = Clock()
    a = Identity.load(config_of(ca_folder, "edge-a"), clock)
    assert not a.refresh()
    assert not caplog.records
    clock.now += 300 * 86400  # of 365
    assert not a.refresh()
    assert not a.refresh()
    assert len(caplog.records) == 1
    assert "causeway ca issue edge-a" in vars(caplog.records[0])["error"]


def test_ca_mode_says_what_is_wrong_with_its_files(ca_folder: Path) -> None:
    node(ca_folder, "edge-a")
    home = ca_folder / "default.edge-a"
    files = {path: path.read_bytes() for path in home.glob("*.*")}
    ca_keys = {"enable": True, "caFile": "ca.crt", "certFile": "node.crt", "keyFile": "node.key"}

    def said(name: str = "edge-a", cluster: str = "default") -> str:
        config = load(ca_folder, "edge-a", tunnel={"ca": ca_keys}).model_copy(
            update={"node_name": name, "cluster": cluster}
        )
        with pytest.raises(IdentityError) as caught:
            Identity.load(config)
        for path, content in files.items():
            path.write_bytes(content)
        return str(caught.value)

    assert "is for node edge-a of cluster default, expected node edge-b" in said(name="edge-b")
    assert "expected node edge-a of cluster blue" in said(cluster="blue")
    (home / "node.key").write_bytes(authority.key_pem(authority.new_key()))
    assert "does not belong to the key" in said()
    (home / "node.key").write_text("garbage")
    assert "expected an unencrypted PEM private key" in said()
    (home / "node.crt").unlink()
    assert "cannot be read" in said()
    run_ca("init", "--out", ca_folder / "ca2")
    (home / "ca.crt").write_bytes((ca_folder / "ca2/ca.crt").read_bytes())
    assert "was not issued by the CA" in said()
    (home / "node.crt").write_bytes((home / "ca.crt").read_bytes())
    assert "causeway ca issue edge-a" in said()
