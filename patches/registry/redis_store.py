"""The registry's keys in one Redis, and the way its scripts are run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import msgspec

from peterrec.patches.errors import RegistryReadOnly
from peterrec.patches.identity import TaskRef, check_name, parse_task, parse_tenant
from peterrec.patches.redis.client import Client, drop_idle_connections, redis_errors
from peterrec.patches.registry.scripts import KEY_NAMES
from peterrec.patches.registry.serialization import Outcome, outcome_of

Argument = str | int | bool | None | list[Any] | dict[str, Any]  # Any: a JSON document


class Store:
    """One key prefix in one Redis. Errors of the Redis client are raised as our own."""

    def __init__(self, redis: Client, prefix: str) -> None:
        self.redis = redis
        self.prefix = check_name(prefix, "key prefix")
        self._scripts: dict[str, Callable[..., Any]] = {}  # Any: redis-py does not type answers

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
        document = {**given, "field": field, "mark": request}
        keys = [*self.keys(field, request), *more_keys]
        return outcome_of(await self.run(script, keys, document))

    async def run(
        self, script: str, keys: Sequence[str], argument: Mapping[str, Argument]
    ) -> Any:  # Any: what the script returns
        """Run a script as one atomic step."""
        run = self._scripts.get(script)
        if run is None:
            run = self._scripts[script] = self.redis.register_script(script)
        try:
            with redis_errors():
                return await run(keys=keys, args=[msgspec.json.encode(argument)])
        except RegistryReadOnly:
            await drop_idle_connections(self.redis)  # the primary may be another server by now
            raise

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
