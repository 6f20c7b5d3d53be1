"""Kinds of head; a new kind is one module here and one line in the table."""

from model.heads.classification import Classification
from model.heads.head import Head, Kind
from model.heads.ranking import Ranking
from model.heads.tags import Tags
from model.heads.value import Value
from model.spec import HeadKind

HEAD_KINDS: dict[HeadKind, Kind] = {
    "classification": Classification(),
    "tags": Tags(),
    "ranking": Ranking(),
    "value": Value(),
}

__all__ = ["HEAD_KINDS", "Head", "Kind"]
