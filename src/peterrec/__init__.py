"""PeterRec: one shared user model, a small patch per task.

    import peterrec

    backbone = peterrec.pretrain(clicks, order_column="at", epochs=3)
    task = peterrec.finetune(backbone, clicks, kind="classification",
                             labels=users, label_column="gender")
    task.predict([["1193", "661", "914"]])
    task.push("gender", url="http://127.0.0.1:8000", api_key="prk_…")

The names in ``__all__`` are the public interface, and they are all of it: ``docs/python.md`` has
the guide, the reference and the version policy. They are imported when they are first used, because
every process of a server imports this package too and needs little of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peterrec.model.errors import PeterRecError
    from peterrec.service.library.backbone import Backbone, load_backbone
    from peterrec.service.library.estimators import (
        ProfileClassifier,
        ProfileRegressor,
        Recommender,
        TagsClassifier,
    )
    from peterrec.service.library.metrics import Metrics
    from peterrec.service.library.reports import Report, data_info, report
    from peterrec.service.library.sample import sample_data
    from peterrec.service.library.task import Task, load_bundle
    from peterrec.service.library.training import finetune, finetune_many, pretrain

    __version__: str

__all__ = [
    "Backbone",
    "Metrics",
    "PeterRecError",
    "ProfileClassifier",
    "ProfileRegressor",
    "Recommender",
    "Report",
    "TagsClassifier",
    "Task",
    "__version__",
    "data_info",
    "finetune",
    "finetune_many",
    "load_backbone",
    "load_bundle",
    "pretrain",
    "report",
    "sample_data",
]

_LIBRARY = "peterrec.service.library"
_PLACES = {
    "Backbone": f"{_LIBRARY}.backbone",
    "Metrics": f"{_LIBRARY}.metrics",
    "PeterRecError": "peterrec.model.errors",
    "ProfileClassifier": f"{_LIBRARY}.estimators",
    "ProfileRegressor": f"{_LIBRARY}.estimators",
    "Recommender": f"{_LIBRARY}.estimators",
    "Report": f"{_LIBRARY}.reports",
    "TagsClassifier": f"{_LIBRARY}.estimators",
    "Task": f"{_LIBRARY}.task",
    "data_info": f"{_LIBRARY}.reports",
    "finetune": f"{_LIBRARY}.training",
    "finetune_many": f"{_LIBRARY}.training",
    "load_backbone": f"{_LIBRARY}.backbone",
    "load_bundle": f"{_LIBRARY}.task",
    "pretrain": f"{_LIBRARY}.training",
    "report": f"{_LIBRARY}.reports",
    "sample_data": f"{_LIBRARY}.sample",
}
"""The module of each public name."""


def __getattr__(name: str) -> Any:  # Any: whatever the public name stands for
    if name == "__version__":
        from importlib.metadata import version  # it takes longer than all the rest

        return version("peterrec-serving")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
