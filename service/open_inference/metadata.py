"""What the protocol says about the server and its models; a model is a task."""

from collections.abc import Callable, Iterable
from importlib.metadata import version

from msgspec import Struct

from peterrec.model.errors import PeterRecError
from peterrec.patches.identity import TenantId
from peterrec.patches.registry.records import TaskEntry
from peterrec.service.open_inference.inputs import INPUTS
from peterrec.service.open_inference.outputs import specs_of
from peterrec.service.predict.pace import Pace
from peterrec.service.predict.task_table import TaskTable, VersionName
from peterrec.service.protocol.served_task import ServedTask

PLATFORM = "peterrec"

EXTENSIONS = ["binary_tensor_data", "model_configuration", "model_repository"]
"""Extensions of the protocol that this server has."""

CONFIG_TYPES = {
    "BOOL": "TYPE_BOOL",
    "INT64": "TYPE_INT64",
    "FP32": "TYPE_FP32",
    "FP64": "TYPE_FP64",
    "BYTES": "TYPE_STRING",
}
"""What a model's configuration calls the types of elements."""


class ServerMetadata(Struct, frozen=True):
    """The server, its version, and the extensions of the protocol that it has."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(Struct, frozen=True):
    """An input or an output. -1 in a shape stands for a size that each call decides."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(Struct, frozen=True):
    """A task: the versions that it serves, and its inputs and outputs."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ConfigTensor(Struct, frozen=True, omit_defaults=True):
    """An input or an output in a configuration."""

    name: str
    data_type: str
    dims: list[int]
    optional: bool = False


class ModelConfig(Struct, frozen=True):
    """A task in the form of Triton's model configuration. Calls bring their own batches."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[ConfigTensor]
    output: list[ConfigTensor]


class ModelIndex(Struct, frozen=True):
    """A version of a task, and whether it answers."""

    name: str
    version: str
    state: str
    reason: str = ""


def server_metadata() -> ServerMetadata:
    """Describe the server."""
    return ServerMetadata("peterrec-serving", version("peterrec-serving"), EXTENSIONS)


def model_metadata(entry: TaskEntry, served: ServedTask) -> ModelMetadata:
    """Describe a task as a version of it answers."""
    bundle = served.bundle
    return ModelMetadata(
        name=entry.task,
        versions=[str(number) for number in served_numbers(entry)],
        platform=PLATFORM,
        inputs=[TensorMetadata(name, _datatype(name), _shape(name)) for name in INPUTS],
        outputs=[
            TensorMetadata(spec.name, spec.datatype, spec.shape)
            for spec in specs_of(bundle.kind, bundle.outputs)
        ],
    )


def model_config(entry: TaskEntry, served: ServedTask) -> ModelConfig:
    """Describe a task in the form of Triton's model configuration."""
    found = model_metadata(entry, served)
    return ModelConfig(
        name=found.name,
        platform=PLATFORM,
        backend=PLATFORM,
        max_batch_size=0,
        input=[
            ConfigTensor(each.name, CONFIG_TYPES[each.datatype], each.shape, each.name != "history")
            for each in found.inputs
        ],
        output=[
            ConfigTensor(each.name, CONFIG_TYPES[each.datatype], each.shape)
            for each in found.outputs
        ],
    )


async def index(
    table: TaskTable, tenant: TenantId, may: Callable[[str], bool], *, ready_only: bool
) -> list[ModelIndex]:
    """List the versions of the tenant's tasks that the caller ``may`` ask, in short steps."""
    pace, found = Pace(), []
    for entry in table.entries(tenant):
        if may(entry.task):
            found += [each for each in _versions(table, entry) if _is_listed(each, ready_only)]
        if pace.is_due:
            await pace.rest()
    return found


def served_numbers(entry: TaskEntry) -> list[int]:
    """Return the numbers of the versions that an alias or the traffic names, in order."""
    in_traffic = () if entry.traffic is None else entry.traffic.versions.values()
    return sorted({*entry.aliases.values(), *in_traffic})


def _is_listed(each: ModelIndex, ready_only: bool) -> bool:
    return not ready_only or each.state == "READY"


def _versions(table: TaskTable, entry: TaskEntry) -> Iterable[ModelIndex]:
    missing = {} if entry.missing is None else entry.missing
    for number in sorted({*served_numbers(entry), *missing.values()}):
        yield _version(table, entry, number)


def _version(table: TaskTable, entry: TaskEntry, number: VersionName) -> ModelIndex:
    try:
        table.resolve(entry.tenant, entry.task, number)
    except PeterRecError as error:
        return ModelIndex(entry.task, str(number), "UNAVAILABLE", str(error))
    return ModelIndex(entry.task, str(number), "READY")


def _datatype(name: str) -> str:
    return "INT64" if name.endswith("lengths") else "BYTES"


def _shape(name: str) -> list[int]:
    return [-1, -1] if name in ("history", "exclude", "candidates") else [-1]
