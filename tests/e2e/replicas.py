"""Several real servers that follow one Redis; a test may kill each and start it again."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import httpx

from peterrec.patches.identity import Digest, TaskId, format_digest
from peterrec.patches.registry.records import EventAction
from peterrec.patches.registry.traffic import PROD
from tests.e2e.running import RunningServer, kill_everything, running_server
from tests.patches.reference_registry import Change, ReferenceRegistry, Task
from tests.waiting import eventually

ALIASES = (PROD, "candidate")
READY_AGAIN_S = 30.0
DEVICE_DEATHS = 'peterrec_child_restarts_total{child="device",reason="died"}'

Answers = dict[tuple[str, str], str]
"""The digest that answers, or the code of the refusal, by task and requested version (or ``""``).

The key ``("registered", "TASK ALIAS")`` has the digest of an alias as the registry lists it.
"""


class Replica:
    """A replica that can be started again: its folder stays when its `peterrec serve` ends."""

    def __init__(self, backbone: Path, folder: Path, redis_url: str) -> None:
        self._backbone = backbone
        self._folder = folder
        self._redis_url = redis_url
        self._life = ExitStack()

    def start(self) -> None:
        """Start the server and wait until it is ready."""
        self.server: RunningServer = self._life.enter_context(
            running_server(
                self._backbone,
                self._folder,
                redis_url=self._redis_url,
                auth="off",
                workers=1,
                drain_delay_s=0,
            )
        )
        self.api: httpx.Client = self._life.enter_context(self.server.client())

    def stop(self) -> None:
        self._life.close()

    def kill(self) -> None:
        """Kill all of its processes."""
        kill_everything(self.server)
        self.stop()

    def kill_device(self) -> None:
        """Kill only the device process, and wait until the supervisor has noticed it."""
        before = self.server.metrics().get(DEVICE_DEATHS, 0.0)
        self.server.child("device").kill()
        eventually(lambda: self.server.metrics().get(DEVICE_DEATHS) == before + 1)

    def wait_until_it_answers(self, task: str) -> None:
        """Wait until it is ready and its device answers for ``task``, which must have a version."""
        eventually(
            lambda: self.server.is_ready() and self._answer(task, "").startswith("sha256:"),
            READY_AGAIN_S,
        )

    def answers(self, wanted: Answers) -> Answers:
        """Return its present answers for every key of ``wanted``, the expected answers."""
        asked = [key for key in wanted if key[0] != "registered"]
        return self._registered() | {(task, name): self._answer(task, name) for task, name in asked}

    def _registered(self) -> Answers:
        return {
            ("registered", f"{task['task']} {alias}"): target["digest"]
            for task in self.api.get("/tasks").json()
            for alias, target in task["aliases"].items()
        }

    def _answer(self, task: str, version: str) -> str:
        body = {"history": [], "parameters": {"version": version} if version else {}}
        answer = self.api.post(f"/tasks/{task}/predict", json=body)
        return str(answer.json()["digest" if answer.status_code == 200 else "code"])

    def make(self, change: Change, bundles: Mapping[Digest, bytes]) -> int:
        """Request a change, assert that it was made, and return its revision."""
        answer = self._send(change, bundles)
        assert answer.status_code in {200, 201}, f"{change}: {answer.text}"
        return int(answer.json()["registry_revision"])

    def _send(self, change: Change, bundles: Mapping[Digest, bytes]) -> httpx.Response:
        task, digest = f"/tasks/{change.task}", change.digest or Digest("")
        alias = {"alias": change.alias}
        match change.action:
            case EventAction.ADD_VERSION:
                return self.api.post(f"{task}/versions", content=bundles[digest], params=alias)
            case EventAction.DELETE_TASK:
                return self.api.delete(task)
            case EventAction.SET_ALIAS:
                named = {"digest": format_digest(digest)}
                return self.api.put(f"{task}/aliases/{change.alias}", json=named)
            case EventAction.DELETE_ALIAS:
                return self.api.delete(f"{task}/aliases/{change.alias}")
            case EventAction.ROLLBACK:
                return self.api.post(f"{task}:rollback", params=alias)
        raise AssertionError(change.action)


def expected(model: ReferenceRegistry, tasks: list[TaskId], digests: list[Digest]) -> Answers:
    """Return the answers of an up-to-date replica for every task, alias and bundle."""
    found: Answers = {}
    by_name = {ref.task: task for ref, task in model.tasks.items()}
    for name in tasks:
        for version in ("", *ALIASES, *map(format_digest, digests)):
            found[name, version] = _expected(by_name.get(name), version)
    for ref, task in model.tasks.items():
        for alias, digest in task.state.aliases:
            found["registered", f"{ref.task} {alias}"] = format_digest(digest)
    return found


def _expected(task: Task | None, version: str) -> str:
    if task is None:
        return "task_not_found"
    named = {alias: format_digest(digest) for alias, digest in task.state.aliases}
    if version == "":
        return named.get(PROD, "task_not_active")
    if version in ALIASES:
        return named.get(version, "alias_not_found")
    if version in named.values():
        return version
    is_registered = version in {format_digest(digest) for digest, _ in task.numbers}
    return "version_not_served" if is_registered else "version_not_found"


def possible(
    model: ReferenceRegistry, action: EventAction, tasks: list[TaskId], digests: list[Digest]
) -> list[Change]:
    """Return the changes with this action that would change something in the present state."""
    found = []
    for task in tasks:
        for digest in digests:
            for alias in ALIASES:
                change, trial = Change(action, task, digest, alias), model.copy()
                trial.apply(change)
                if trial.revision != model.revision:
                    found.append(change)
    return found
