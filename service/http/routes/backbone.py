"""The backbone that all tasks of this server share."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel

from peterrec.model.files.backbone_info import BackboneInfo
from peterrec.model.spec import CLS, MASK, PAD, UNK, vocabulary_digest
from peterrec.service.http.context import Caller

router = APIRouter(tags=["backbone"])


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


def describe_backbone(info: BackboneInfo) -> BackboneView:
    """Describe a backbone. Hashes the whole vocabulary, so it is done once per application."""
    spec = info.spec
    return BackboneView(
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


async def get_view(request: Request) -> BackboneView:
    """Return the description that was made when the application was created."""
    view: BackboneView = request.app.state.backbone
    return view


@router.get("/backbone")
async def get_backbone(
    _caller: Caller, view: Annotated[BackboneView, Depends(get_view)]
) -> BackboneView:
    """Describe the backbone that this server runs."""
    return view
