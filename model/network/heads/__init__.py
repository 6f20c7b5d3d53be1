"""Kinds of head; a new kind is one module here and one line in the table."""

from peterrec.model.network.heads.classification import Classification
from peterrec.model.network.heads.head import Head, Kind
from peterrec.model.network.heads.ranking import Ranking
from peterrec.model.network.heads.tags import Tags
from peterrec.model.network.heads.value import Value
from peterrec.model.spec import HeadKind

HEAD_KINDS: dict[HeadKind, Kind] = {
    "classification": Classification(),
    "tags": Tags(),
    "ranking": Ranking(),
    "value": Value(),
}

__all__ = ["HEAD_KINDS", "Head", "Kind"]
