"""Client of PeterRec serving: request predictions and register bundles.

``Client`` blocks, and ``AsyncClient`` is for asyncio. They have equal methods, results and errors.
"""

from peterrec_client.answers import (
    Alias,
    AliasMoved,
    Backbone,
    BundleSummary,
    Canary,
    Changed,
    FailedInstance,
    Pushed,
    Readiness,
    RolledBack,
    Task,
    TaskDetail,
    Traffic,
    TrafficVersion,
    UserPrediction,
    Version,
)
from peterrec_client.async_client import AsyncClient
from peterrec_client.errors import (
    Conflict,
    DeadlineExceeded,
    Forbidden,
    Incompatible,
    InvalidRequest,
    NoRoom,
    NotFound,
    OutputsDiffer,
    Overloaded,
    PeterRecError,
    ServerFailed,
    ServerUnreachable,
    StaleRevision,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnexpectedAnswer,
    UnsafeFormat,
)
from peterrec_client.kinds import ItemId, Prediction
from peterrec_client.kinds.classification import ClassificationPrediction
from peterrec_client.kinds.prediction import (
    ExplainedOutput,
    Explanation,
    ItemContribution,
    Reason,
)
from peterrec_client.kinds.ranking import RankedItem, RankingPrediction
from peterrec_client.kinds.tags import Tag, TagsPrediction
from peterrec_client.kinds.value import ValuePrediction
from peterrec_client.questions import Explain, Instance, TaskChoice
from peterrec_client.retrying import RetryPolicy
from peterrec_client.sync_client import Client

__all__ = [
    "Alias",
    "AliasMoved",
    "AsyncClient",
    "Backbone",
    "BundleSummary",
    "Canary",
    "Changed",
    "ClassificationPrediction",
    "Client",
    "Conflict",
    "DeadlineExceeded",
    "Explain",
    "ExplainedOutput",
    "Explanation",
    "FailedInstance",
    "Forbidden",
    "Incompatible",
    "Instance",
    "InvalidRequest",
    "ItemContribution",
    "ItemId",
    "NoRoom",
    "NotFound",
    "OutputsDiffer",
    "Overloaded",
    "PeterRecError",
    "Prediction",
    "Pushed",
    "RankedItem",
    "RankingPrediction",
    "Readiness",
    "Reason",
    "RetryPolicy",
    "RolledBack",
    "ServerFailed",
    "ServerUnreachable",
    "StaleRevision",
    "Tag",
    "TagsPrediction",
    "Task",
    "TaskChoice",
    "TaskDetail",
    "TooLarge",
    "Traffic",
    "TrafficVersion",
    "Unauthenticated",
    "Unavailable",
    "UnexpectedAnswer",
    "UnsafeFormat",
    "UserPrediction",
    "ValuePrediction",
    "Version",
]
