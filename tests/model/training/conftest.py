"""Fixtures of the tests of training."""

from dataclasses import replace

import pytest

from peterrec.model.files.backbone_folder import LoadedBackbone, load_backbone, save_backbone
from peterrec.model.training.pretrain.pretrain import pretrain
from tests.model.small_shop import TINY, shop_histories


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedBackbone:
    """A small backbone, pretrained for one epoch."""
    folder = tmp_path_factory.mktemp("backbone")
    trained = pretrain(shop_histories(), replace(TINY, epochs=1))
    save_backbone(folder, trained.backbone, list(trained.vocabulary.items), trained.record)
    return load_backbone(folder)
