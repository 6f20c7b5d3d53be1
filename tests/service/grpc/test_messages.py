"""The messages of our gRPC calls: compiled from the files beside them, apart from all others."""

import subprocess
import sys

import pytest
from google.protobuf import descriptor_pool
from grpc import StatusCode

from peterrec.model.errors import Category
from peterrec.service.grpc.messages import DESCRIPTORS, inference_class, pool
from peterrec.service.grpc.statuses import STATUS
from tests.service.grpc.descriptors import compiled


def test_the_compiled_messages_are_those_of_the_files():
    assert compiled() == DESCRIPTORS.read_bytes(), (
        "The *.proto files have changed: run `python -m tests.service.grpc.descriptors`."
    )


@pytest.mark.parametrize(
    "order",
    [
        "tritonclient.grpc, peterrec.service.grpc.server",
        "peterrec.service.grpc.server, tritonclient.grpc",
    ],
)
def test_the_server_can_be_imported_beside_a_client(order):
    program = (
        f"import {order}\n"
        "from peterrec.service.grpc.messages import inference_class\n"
        "from tritonclient.grpc import service_pb2\n"
        "ours = inference_class('ModelInferRequest')(model_name='films', id='7')\n"
        "theirs = service_pb2.ModelInferRequest.FromString(ours.SerializeToString())\n"
        "assert (theirs.model_name, theirs.id) == ('films', '7')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_message_of_ours_is_in_the_pool_that_all_share():
    assert inference_class("ServerLiveRequest") is not None
    program = (
        "from google.protobuf import descriptor_pool\n"
        "from peterrec.service.grpc.messages import inference_class\n"
        "inference_class('ServerLiveRequest')\n"
        "try:\n"
        "    descriptor_pool.Default().FindMessageTypeByName('inference.ServerLiveRequest')\n"
        "except KeyError:\n"
        "    print('apart')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "apart\n", done.stderr
    assert pool() is not descriptor_pool.Default()


def test_the_messages_have_the_protocols_names_and_numbers():
    from tritonclient.grpc import service_pb2

    for name, message in (
        pool().FindFileByName("open_inference.proto").message_types_by_name.items()
    ):
        theirs = getattr(service_pb2, name, None)
        if theirs is None:  # those of the model configuration, which are in another file
            continue
        numbers = {field.name: field.number for field in theirs.DESCRIPTOR.fields}
        for field in message.fields:
            assert numbers[field.name] == field.number, f"{name}.{field.name}"


def test_every_error_has_a_status():
    assert set(STATUS) == set(Category)
    assert StatusCode.OK not in STATUS.values()
