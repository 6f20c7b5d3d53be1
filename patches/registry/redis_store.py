"""The registry's keys in one Redis, and the way its scripts are run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import msgspec

from peterrec.patches.errors import RegistryLost, RegistryReadOnly
from peterrec.patches.identity import TaskRef, check_name, parse_task, parse_tenant
from peterrec.patches.redis.client import Client, drop_idle_connections, redis_errors
from peterrec.patches.registry.acknowledgement import Acknowledgement
from peterrec.patches.registry.losses import Knowledge, loss
from peterrec.patches.registry.scripts import KEY_NAMES
from peterrec.patches.registry.serialization import Outcome, outcome_of

Argument = str | int | float | bool | None | list[Any] | dict[str, Any]  # Any: a JSON document


class Store:
    """One key prefix in one Redis. Errors of the Redis client are raised as our own.

    ``knowledge`` is what this process knows of the registry: nothing is read while it is lost, and
    no change is made to one that does not hold what is known (RegistryLost).
    """

    def __init__(
        self,
        redis: Client,
        prefix: str,
        knowledge: Knowledge | None = None,
        acknowledgement: Acknowledgement | None = None,
    ) -> None:
        self._redis = redis
        self.prefix = check_name(prefix, "key prefix")
        self._knowledge = knowledge or Knowledge()
        self._acknowledgement = acknowledgement
        self._scripts: dict[str, Callable[..., Any]] = {}  # Any: redis-py does not type answers

    @property
    def redis(self) -> Client:
        """The client; RegistryLost while the registry is."""
        self._knowledge.check()
        return self._redis

    def unguarded(self) -> "Store":
        """Return the same keys for those who look whether the registry is lost, or put it back."""
        return Store(self._redis, self.prefix, acknowledgement=self._acknowledgement)

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def drop_idle_connections(self) -> None:
        """Make the next call connect again, because after a silence all connections may be dead."""
        await drop_idle_connections(self._redis)

    async def change(self, script: str, field: str = "", **argument: Argument) -> Outcome:
        """Run a script that changes something, under a new request id; None arguments are left out.

        If the answer is lost, the client sends the same request again and gets the first outcome.
        """
        return await self.change_with((), script, field, **argument)

    async def change_with(
        self, more_keys: Sequence[str], script: str, field: str = "", **argument: Argument
    ) -> Outcome:
        """Run a script that changes something and receives ``more_keys`` after the usual ones."""
        request = uuid4().hex
        given = {name: value for name, value in argument.items() if value is not None}
        document = {**given, "field": field, "mark": request, **self._knowledge.document()}
        keys = [*self.keys(field, request), *more_keys]
        outcome = outcome_of(await self._make(script, keys, document))
        if outcome.error == RegistryLost.code:
            raise loss(outcome.reason, self._knowledge.position, outcome.found)
        return outcome

    async def _make(
        self, script: str, keys: Sequence[str], document: Mapping[str, object]
    ) -> Any:  # Any: as ``run``
        """Run a script that changes something, and have the change acknowledged if that is set."""
        if self._acknowledgement is None:
            return await self._run(script, keys, document)
        text = msgspec.json.encode(document)
        try:
            with redis_errors():
                return await self._acknowledgement.make(
                    self.redis, self._script(script), keys, text, self.key("acknowledged")
                )
        except RegistryReadOnly:
            await self.drop_idle_connections()  # the primary may be another server by now
            raise

    async def run(
        self, script: str, keys: Sequence[str], argument: Mapping[str, Argument]
    ) -> Any:  # Any: what the script returns
        """Run a script as one atomic step."""
        return await self._run(script, keys, argument)

    async def _run(
        self, script: str, keys: Sequence[str], argument: Mapping[str, object]
    ) -> Any:  # Any: what the script returns
        self._knowledge.check()
        try:
            with redis_errors():
                return await self._script(script)(keys=keys, args=[msgspec.json.encode(argument)])
        except RegistryReadOnly:
            await self.drop_idle_connections()  # the primary may be another server by now
            raise

    def _script(self, script: str) -> Callable[..., Any]:  # Any: redis-py does not type answers
        run = self._scripts.get(script)
        if run is None:
            run = self._scripts[script] = self._redis.register_script(script)
        return run

    def keys(self, field: str = "", request: str = "") -> list[str]:
        """Return the keys that every script receives, in the order of KEY_NAMES."""
        own = {"request": request, "versions": field, "states": field}
        return [self.key(name, own.get(name)) for name in KEY_NAMES]

    def key(self, name: str, of: str | None = None) -> str:
        """Return a key by its name; ``of`` is the task or request if each has its own."""
        key = f"{{{self.prefix}}}:{name}"
        return key if of is None else f"{key}:{of}"


def field_of(ref: TaskRef) -> str:
    """Return the task's field in the hash of tasks; InvalidName if a name is malformed."""
    return f"{parse_tenant(ref.tenant)}/{parse_task(ref.task)}"
