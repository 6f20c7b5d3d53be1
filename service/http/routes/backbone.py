"""What every task on this server is grafted into."""

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from peterrec.model.spec import CLS, MASK, PAD, UNK, vocabulary_digest
from peterrec.service.http.auth import Principal
from peterrec.service.http.routes.context import AdminContext, find_caller


class BackboneView(BaseModel):
    """Identity and shape of the backbone; a bundle must name this fingerprint."""

    fingerprint: str
    item_count: int
    vocabulary_digest: str
    channels: int
    dilations: list[int]
    kernel_size: int
    is_causal: bool
    padding: str
    max_len: int
    special_tokens: dict[str, int]


def backbone_router(context: AdminContext) -> APIRouter:
    """``GET /backbone``."""
    router = APIRouter(tags=["backbone"])
    Caller = Annotated[Principal, Depends(find_caller(context.authenticator))]
    info, spec = context.backbone, context.backbone.spec
    view = BackboneView(
        fingerprint=info.fingerprint,
        item_count=spec.item_count,
        vocabulary_digest=vocabulary_digest(info.items),
        channels=spec.channels,
        dilations=list(spec.dilations),
        kernel_size=spec.kernel_size,
        is_causal=spec.is_causal,
        padding=spec.padding,
        max_len=spec.max_len,
        special_tokens={"PAD": PAD, "UNK": UNK, "CLS": CLS, "MASK": MASK},
    )

    @router.get("/backbone")
    async def get_backbone(caller: Caller) -> BackboneView:
        """The backbone that this server runs."""
        return view

    return router
