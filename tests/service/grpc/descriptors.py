"""Compile the ``*.proto`` files; ``python -m tests.service.grpc.descriptors`` writes the result."""

from pathlib import Path
from tempfile import TemporaryDirectory

from grpc_tools import protoc

from peterrec.service.grpc.messages import DESCRIPTORS

PROTOS = DESCRIPTORS.parent


def compiled() -> bytes:
    """Return what the compiler makes of the files, without their comments."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "descriptors.binpb"
        files = sorted(path.name for path in PROTOS.glob("*.proto"))
        status = protoc.main(["protoc", f"-I{PROTOS}", f"--descriptor_set_out={out}", *files])
        assert status == 0
        return out.read_bytes()


if __name__ == "__main__":
    DESCRIPTORS.write_bytes(compiled())
