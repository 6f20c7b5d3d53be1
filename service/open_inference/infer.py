"""One call of the protocol, from input tensors to output tensors.

The protocol has no place for the error of one user among several, so a call is answered as a whole
or not at all.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from peterrec.model.errors import PeterRecError
from peterrec.patches.identity import TenantId
from peterrec.service.errors import NothingAnswered
from peterrec.service.open_inference.inputs import InferCall, Scalar, read_call
from peterrec.service.open_inference.outputs import Given, Output, outputs_of
from peterrec.service.predict.admission import Admission
from peterrec.service.predict.predictor import Predicted, Predictor, TaskQuestions
from peterrec.service.predict.registered_versions import RegisteredVersions
from peterrec.service.predict.task_table import VersionName
from peterrec.service.protocol.sender import Sender
from peterrec.service.protocol.served_task import ServedTask

SHOWN_USERS = 5
"""Users whose errors the text of a refusal names."""


@dataclass(slots=True)
class Asked:
    """Who asks what, and until when; ``rows`` and ``outcomes`` are set for the metrics.

    ``received_at`` and ``deadline`` are on ``time.monotonic``.
    """

    tenant: TenantId
    task: str
    version: VersionName | None
    priority: int
    received_at: float
    deadline: float
    rows: int = 0


class Inferred(NamedTuple):
    """The answer of a call."""

    outputs: list[Output]
    by: ServedTask
    registry_revision: int

    @property
    def parameters(self) -> Mapping[str, Scalar]:
        """What names the bundle that answered, or prod's if several did."""
        return {
            "digest": self.by.bundle.digest,
            "kind": self.by.bundle.kind,
            "role": str(self.by.role),
            "registry_revision": self.registry_revision,
        }


class Engine(NamedTuple):
    """The collaborators that answer a call. ``admit_rows`` raises its quota's error."""

    predictor: Predictor
    registered: RegisteredVersions
    admission: Admission
    admit_rows: Callable[[int], None]


Lasting = Callable[[Awaitable[Predicted]], Awaitable[Predicted]]
"""Ends the work early if the client leaves."""


async def infer(engine: Engine, asked: Asked, call: InferCall, lasting: Lasting) -> Inferred:
    """Answer a call. Raises the error of the task or of the call, or NothingAnswered."""
    read = await read_call(call)
    asked.rows = len(read.instances)
    deadline = asked.deadline
    if read.timeout_s is not None:
        deadline = min(deadline, asked.received_at + read.timeout_s)
    priority = asked.priority if read.priority is None else read.priority
    with engine.admission.admit(Sender(asked.tenant, priority), asked.rows, deadline):
        engine.admit_rows(asked.rows)
        questions = await engine.predictor.questions(read.instances, read.parameters)
        task = TaskQuestions(asked.task, asked.version, questions)
        predicted = await lasting(
            engine.predictor.predict(asked.tenant, (task,), deadline, priority)
        )
    served, answered = predicted.tasks[0]
    if isinstance(served, PeterRecError):
        raise await engine.registered.judged(asked.tenant, served)
    given, failed = list[Given](), dict[str, PeterRecError]()
    for at, each in enumerate(answered):
        if isinstance(each.answer, PeterRecError):
            failed[str(at)] = each.answer
        elif each.by is not None:
            given.append(Given(each.answer, each.by))
    if failed:
        raise next(iter(failed.values())) if len(answered) == 1 else NothingAnswered(failed)
    outputs = await outputs_of(given, call.outputs, call.is_binary)
    by = {each.by.bundle.digest: each.by for each in given}
    one = next(iter(by.values())) if len(by) == 1 else served
    return Inferred(outputs, one, predicted.registry_revision)


def failure_text(error: PeterRecError) -> str:
    """Return an error as the one text that the protocol has for it."""
    if not isinstance(error, NothingAnswered):
        return str(error)
    alike = [at for at, each in error.errors.items() if each.code == error.first.code]
    shown = ", ".join(alike[:SHOWN_USERS]) + (", …" if len(alike) > SHOWN_USERS else "")
    return f"{error.first} This is about user {shown} of the call, counted from 0."
