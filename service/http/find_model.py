"""What a call of the Open Inference Protocol is about: a task, or a version of it."""

from typing import NamedTuple

from peterrec.model.errors import PeterRecError
from peterrec.patches.registry.records import TaskEntry
from peterrec.service.http.auth import Principal
from peterrec.service.http.context import PredictContext
from peterrec.service.protocol.served_task import ServedTask


class FoundModel(NamedTuple):
    """A task as it is served, and what would answer now."""

    entry: TaskEntry
    served: ServedTask


async def find_model(
    context: PredictContext, caller: Principal, task: str, version: str
) -> FoundModel:
    """Find what answers for a task; an empty ``version`` means prod with its traffic.

    Raises Forbidden, TaskNotFound, and whatever a prediction would be refused for.
    """
    caller.require("predict", task)
    entry = context.table.existing(caller.tenant, task)
    try:
        return FoundModel(entry, context.table.resolve(caller.tenant, task, version or None))
    except PeterRecError as error:
        raise await context.registered.judged(caller.tenant, error) from error
