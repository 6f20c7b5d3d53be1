"""The messages of our gRPC calls, made at run time in a descriptor pool of their own.

Generated code would register them in the default pool. There the clients of the protocol register
theirs under the same names, so only one of them could be imported in a process.
"""

from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

DESCRIPTORS = Path(__file__).parent / "protos" / "descriptors.binpb"
"""The compiled ``*.proto`` files; ``python -m tests.service.grpc.descriptors`` writes it."""

INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1.ServerReflection"

Message = Any
"""A message. protobuf makes its class at run time, so no type checker knows its fields."""


@cache
def pool() -> DescriptorPool:
    """Return the pool of all our messages and services."""
    made = DescriptorPool()
    for file in FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file:
        made.Add(file)
    return made


@cache
def message_class(name: str) -> Message:
    """Return the class of a message by its full name."""
    return GetMessageClass(pool().FindMessageTypeByName(name))


@cache
def inference_class(name: str) -> Message:
    """Return the class of a message of the Open Inference Protocol."""
    return message_class(f"inference.{name}")
