"""Fixtures of the tests of training."""

from dataclasses import replace

import pytest

from peterrec.model.files.backbone_folder import LoadedBackbone
from tests.model.small_shop import TINY, small_backbone


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedBackbone:
    """A small backbone, pretrained for one epoch."""
    return small_backbone(tmp_path_factory.mktemp("backbone"), replace(TINY, epochs=1))
