"""An application of a worker in this process, without a device process and without Redis.

``python -m tests.service.http.application`` writes the reviewed OpenAPI document again.
"""

import json
from pathlib import Path
from tempfile import gettempdir

from peterrec.model.files.backbone_info import BackboneInfo
from peterrec.model.spec import BackboneSpec
from peterrec.patches.redis.client import open_redis
from peterrec.patches.registry.registry import Registry
from peterrec.service.http.app import Application
from peterrec.service.http.auth import Authenticator
from peterrec.service.http.context import AdminContext, PredictContext
from peterrec.service.predict.admission import Admission
from peterrec.service.predict.catalogs import Catalogs
from peterrec.service.predict.device_link import DeviceLink
from peterrec.service.predict.feedback import PredictionIds
from peterrec.service.predict.item_ids import ItemVocabulary
from peterrec.service.predict.predictor import Predictor
from peterrec.service.predict.registered_versions import RegisteredVersions
from peterrec.service.predict.remembered import RememberedAnswers
from peterrec.service.predict.task_table import TaskTable

SNAPSHOT = Path(__file__).parent / "openapi.json"


def make_application() -> Application:
    table, authenticator = TaskTable(), Authenticator(is_required=True)
    link = DeviceLink(Path("nowhere"), table, max_rows=1, on_update=lambda _: None)
    registry = Registry(open_redis("redis://127.0.0.1:1"), "nowhere")
    info = BackboneInfo(BackboneSpec(item_count=1), ["a"], "f" * 64)
    predictor = Predictor(ItemVocabulary(["a"], 5), table, link, Catalogs(), lambda _: None)
    return Application(
        AdminContext(table, authenticator, link, registry, info, Path(gettempdir()), 1),
        PredictContext(
            table,
            authenticator,
            predictor,
            lambda _: None,
            1000,
            RegisteredVersions(table, registry),
            Admission(link.places),
            RememberedAnswers(PredictionIds(), registry.outcomes),
        ),
    )


def render_document() -> str:
    document = make_application().openapi()
    document["info"]["version"] = "any"
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SNAPSHOT.write_text(render_document(), encoding="utf-8")
