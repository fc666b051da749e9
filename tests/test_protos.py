"""The committed generated code is what the .proto files say."""

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

ROOT = Path(__file__).parent.parent
NAMES = sorted(path.stem for path in (ROOT / "protos").glob("*.proto"))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    """The descriptors that the compiler makes of the .proto files now."""
    out = tmp_path_factory.mktemp("protos") / "set.bin"
    files = [f"protos/{name}.proto" for name in NAMES]
    arguments = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", f"--descriptor_set_out={out}", *files]
    subprocess.run(arguments, cwd=ROOT, check=True, timeout=120)
    found = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    return {Path(file.name).stem: file for file in found}


def test_there_are_contracts() -> None:
    assert NAMES == ["discovery", "proxy", "relay", "tunnel"]


@pytest.mark.parametrize("name", NAMES)
def test_messages_are_fresh(name: str, compiled: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
    # Descriptors, not bytes of source: those differ between versions of the generator.
    committed = descriptor_pb2.FileDescriptorProto()
    __import__(f"protos.{name}_pb2")
    sys.modules[f"protos.{name}_pb2"].DESCRIPTOR.CopyToProto(committed)
    expected = compiled[name]
    for file in (committed, expected):
        for message in walk(list(file.message_type)):
            for field in message.field:
                field.ClearField("json_name")  # filled in by one of the two only
    assert committed == expected, f"protos/{name}_pb2.py is stale: run `make protos`"


@pytest.mark.parametrize("name", NAMES)
def test_stubs_are_fresh(name: str, compiled: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
    text = (ROOT / "protos" / f"{name}_pb2_grpc.py").read_text()
    for service in compiled[name].service:
        for method in service.method:
            path = f"'/{compiled[name].package}.{service.name}/{method.name}'"
            assert path in text, f"protos/{name}_pb2_grpc.py lacks {path}: run `make protos`"


@pytest.mark.parametrize("name", NAMES)
def test_typing_is_there(name: str, compiled: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
    text = (ROOT / "protos" / f"{name}_pb2.pyi").read_text()
    for message in compiled[name].message_type:
        assert f"class {message.name}(" in text, f"protos/{name}_pb2.pyi lacks {message.name}: run `make protos`"


def walk(messages: list[descriptor_pb2.DescriptorProto]) -> list[descriptor_pb2.DescriptorProto]:
    return [inner for message in messages for inner in [message, *walk(list(message.nested_type))]]
