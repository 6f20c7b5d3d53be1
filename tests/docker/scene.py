"""A server on which everything happens that dashboards show: load, faults, rollouts, outcomes."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx
import numpy as np

from peterrec.model.spec import HeadKind
from peterrec.patches.bundle.bundle import build_bundle, open_bundle
from peterrec.patches.bundle.manifest import ManifestPrior
from tests.e2e.conftest import push
from tests.e2e.neighbours import Tenant, as_caller, make_tenant, push_films
from tests.e2e.rollouts import UNPROBED_OUTPUTS, broken_bundle, put_traffic, with_two_versions
from tests.e2e.running import RunningServer
from tests.service.random_bundles import ITEMS, Workshop

KNOWN = 0.97
"""Share of the items in histories that the backbone knows."""

USERS_OF_PRIOR = 120
"""Users who are asked for what a bundle of random weights has instead of a training."""


def with_prior(bundle: bytes, answers: Sequence[dict[str, Any]]) -> bytes:
    """The bundle with these answers as its prior."""
    contents = open_bundle(bundle)
    labels = contents.manifest.head.labels or ()
    said = [_said(answer) for answer in answers]
    scores = np.array([score for _, score in said])
    bounds = np.unique(np.quantile(scores, (0.2, 0.4, 0.6, 0.8))) + 1e-6
    places = np.searchsorted(bounds, scores, side="right")
    prior = ManifestPrior(
        users=len(answers),
        outputs=tuple(sum(label in names for names, _ in said) for label in labels),
        bounds=tuple(bounds.tolist()),
        scores=tuple(np.bincount(places, minlength=len(bounds) + 1).tolist()),
    )
    tensors = {name: np.array(array) for name, array in contents.tensors.items()}
    return build_bundle(contents.manifest.model_copy(update={"prior": prior}), tensors)


def _said(answer: dict[str, Any]) -> tuple[list[str], float]:
    """The labels and the score of an answer of any kind."""
    if "label" in answer:
        return [answer["label"]], answer["scores"][answer["label"]]
    if "tags" in answer:
        return [tag["label"] for tag in answer["tags"]], max(answer["scores"].values())
    return [], answer["value"] if "value" in answer else answer["items"][0]["score"]


TASKS: Sequence[tuple[str, HeadKind, int]] = (
    ("gender", "classification", 3),
    ("spend", "value", 3),
    ("next-item", "ranking", 60),
    ("interests", "tags", 4),
)


@dataclass
class Scene:
    """The tasks and tenants on a server, and what their callers do."""

    server: RunningServer
    workshop: Workshop
    random: Random = field(default_factory=lambda: Random(7))
    tenants: list[Tenant] = field(default_factory=list)

    def prepare(self) -> None:
        """Register tasks of all kinds, two tenants with quotas, a rollout, and one that fails."""
        make = self.workshop.bundle
        with self.server.client() as api:
            for number, (task, kind, outputs) in enumerate(TASKS):
                self._push(api, task, make(kind, seed=number, outputs=outputs))
            first, second = (make("classification", seed=seed) for seed in (5, 6))
            _, canary = with_two_versions(api, "age", first, second)
            weighted = {"version": canary, "weight": 30}
            put_traffic(
                api,
                "age",
                prod_weight=70,
                canary=[weighted],
                shadow=[canary],
                guard={"max_divergence": 1.0, "min_requests": 10_000},
            )
            for name, rows in (("shoes", 5), ("films-and-more", 400)):
                made = make_tenant(api, name, quotas={"rows_per_s": rows, "tasks": 20})
                push_films(self.server, made, make("value", seed=7))
                self.tenants.append(made)

    def _push(self, api: httpx.Client, task: str, bundle: bytes) -> None:
        """Register a bundle, and again with a prior that it answers itself."""
        push(api, task, bundle)
        users = range(200_000, 200_000 + USERS_OF_PRIOR)
        found = [self.ask(api, task, user).json()["predictions"][0] for user in users]
        known = [answer for answer in found if not answer["cold"]]
        push(api, task, with_prior(bundle, known))

    def break_things(self) -> None:
        """Have a bundle refused, a guard trip, rows expire, and requests that say nonsense."""
        sound = self.workshop.bundle("classification", seed=8, outputs=UNPROBED_OUTPUTS)
        with self.server.client() as api:
            api.post("/tasks/spend/versions", content=b"\x80\x04 a pickle")
            _, broken = with_two_versions(api, "region", sound, broken_bundle(self.workshop, 9))
            put_traffic(
                api,
                "region",
                prod_weight=50,
                canary=[{"version": broken, "weight": 50}],
                guard={"max_error_share": 0.1, "min_requests": 10},
            )
            for user in range(60):
                self.ask(api, "region", user)
            for _ in range(10):
                self.ask(api, "made-up", 1)
                api.post("/tasks/gender/predict", content=b"{")
                with suppress(httpx.HTTPError):
                    self.ask(api, "gender", 1, {"X-Request-Timeout-Ms": "1"})

    def act(self, seconds: float, shift: float = 0.0) -> None:
        """Let callers of all sorts ask for some time; ``shift`` of the users are of one sort."""
        until = time.monotonic() + seconds
        with self.server.client() as api:
            while time.monotonic() < until:
                self._round(api, shift)

    def ask(
        self, api: httpx.Client, task: str, user: int, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        body = {
            "instances": [{"history": self._history(user), "user_id": user}],
            "parameters": {"prediction_ids": True},
        }
        return api.post(f"/tasks/{task}/predict", json=body, headers=headers)

    def _round(self, api: httpx.Client, shift: float) -> None:
        is_shifted = self.random.random() < shift
        user = 1 if is_shifted else self.random.randrange(100_000)
        for task in ("gender", "age", "spend", "interests"):
            self._tell(api, task, self.ask(api, task, user))
        self._tell(api, "next-item", self.ask(api, "next-item", user))
        history = self._history(user)
        api.post("/users/predict", json={"history": history, "tasks": ["gender", "next-item"]})
        explained = {"instances": [{"history": history}], "parameters": {"explain": 2}}
        if self.random.random() < 0.1:
            api.post("/tasks/gender/predict", json=explained)
        for tenant in self.tenants:
            rows = [{"history": self._history(user)}] * self.random.randrange(1, 24)
            with as_caller(self.server, tenant, "predict") as caller:
                caller.post("/tasks/films/predict", json={"instances": rows})

    def _tell(self, api: httpx.Client, task: str, answer: httpx.Response) -> None:
        """Tell an outcome: right in most cases, as the answer's own probability says."""
        if answer.status_code != 200:
            return
        (found,) = answer.json()["predictions"]
        outcomes = {
            "gender": lambda: _drawn(self.random, found["scores"]),
            "age": lambda: _drawn(self.random, found["scores"]),
            "spend": lambda: found["value"] + self.random.gauss(0, 0.3),
            "interests": lambda: [t["label"] for t in found["tags"] if self.random.random() < 0.8],
            "next-item": lambda: (
                [each["id"] for each in found["items"][:1]]
                if self.random.random() < 0.3
                else ["something else"]
            ),
        }
        told = {"prediction_id": found["prediction_id"], "outcome": outcomes[task]()}
        answer = api.post(f"/tasks/{task}/feedback", json={"feedback": [told]})
        assert answer.status_code == 200, answer.text

    def _history(self, user: int) -> list[str]:
        chosen = Random(user)
        items = [chosen.choice(ITEMS) for _ in range(chosen.randrange(0, 15))]
        return [item if chosen.random() < KNOWN else f"new-{item}" for item in items]


def _drawn(chosen: Random, scores: dict[str, float]) -> str:
    return chosen.choices([*scores], weights=[*scores.values()])[0]
