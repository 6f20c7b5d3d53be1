"""The backbones of this server, which its tasks share."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from msgspec import structs
from pydantic import BaseModel

from peterrec.model.files.backbone_info import BackboneInfo
from peterrec.model.spec import CLS, MASK, PAD, UNK, vocabulary_digest
from peterrec.service.http.context import Caller, Context

router = APIRouter(tags=["backbone"])


class MemoryView(BaseModel):
    """The device memory of a backbone in bytes: its own weights, and those of its bundles."""

    backbone_bytes: int
    patch_bytes: int
    head_bytes: int
    bundles: int


class OneBackbone(BaseModel):
    """Identity and shape of a backbone; a bundle must name this fingerprint.

    `memory` is null until the device process has told it.
    """

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
    memory: MemoryView | None = None


class BackboneView(OneBackbone):
    """The first backbone of the server, and the others that it has beside it.

    A task is answered by the backbone that its bundle names.
    """

    others: list[OneBackbone] = []


def describe_backbone(info: BackboneInfo) -> OneBackbone:
    """Describe a backbone. Hashes the whole vocabulary, so it is done once per application."""
    spec = info.spec
    return OneBackbone(
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


async def get_view(request: Request, context: Context) -> BackboneView:
    """Return the descriptions that were made with the application, with the memory as it is."""
    views: list[OneBackbone] = request.app.state.backbones
    status = context.link.state.status
    memory = [] if status is None else status.memory
    told = [
        view.model_copy(update={"memory": MemoryView(**structs.asdict(used))})
        for view, used in zip(views, memory, strict=False)
    ]
    first, *others = told or views
    return BackboneView(**first.model_dump(), others=others)


@router.get("/backbone")
async def get_backbone(
    _caller: Caller, view: Annotated[BackboneView, Depends(get_view)]
) -> BackboneView:
    """Describe the backbone that this server runs, and those beside it."""
    return view
