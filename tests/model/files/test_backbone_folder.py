"""The backbone on disk: it comes back the same, and no damage passes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from peterrec.model.errors import (
    BackboneFolderInvalid,
    DiskFull,
    InvalidSpec,
    PeterRecError,
    TensorFileInvalid,
)
from peterrec.model.files.backbone_folder import (
    RECORD,
    WEIGHTS,
    fingerprint_of,
    load_backbone,
    save_backbone,
)
from peterrec.model.files.backbone_info import SPEC, VOCABULARY, read_info
from peterrec.model.files.tensors import read_tensors, write_tensors
from peterrec.model.network.backbone import Backbone
from peterrec.model.network.collate import frame_histories
from peterrec.model.spec import BackboneSpec
from tests.full_disk import files_of_at_most
from tests.model.random_tasks import random_backbone

TINY = BackboneSpec(item_count=3, channels=4, dilations=(1, 2), kernel_size=2, max_len=5)
ITEMS = ["film-a", "film-ü", "3"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_backbone(tmp_path / "backbone", random_backbone(TINY), ITEMS, {"epochs": 2})
    return tmp_path / "backbone"


def test_a_full_disk_keeps_the_old_backbone(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    spec = replace(TINY, item_count=300)
    with files_of_at_most(1000), pytest.raises(DiskFull, match="bytes are wanted"):
        save_backbone(folder, random_backbone(spec), [str(i) for i in range(300)], {})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_further_tensors_come_with_the_backbone(tmp_path: Path) -> None:
    others = {"layer.safetensors": {"bias": torch.arange(3.0)}}
    save_backbone(tmp_path, random_backbone(TINY), ITEMS, {}, others)
    assert read_tensors(tmp_path / "layer.safetensors")["bias"].tolist() == [0, 1, 2]
    assert load_backbone(tmp_path).items == ITEMS


@pytest.mark.parametrize("name", ["file", "file/deep", "nowhere"])
def test_what_is_no_folder_holds_no_backbone(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BackboneFolderInvalid, match="there is no folder"):
        load_backbone(tmp_path / name)


def test_a_backbone_comes_back_the_same(folder: Path) -> None:
    original = random_backbone(TINY)
    loaded = load_backbone(folder)
    assert loaded.backbone.spec == TINY
    assert loaded.items == ITEMS
    assert loaded.record == {"epochs": 2}
    frames = frame_histories([[4, 5], [6]], TINY)
    assert torch.equal(loaded.backbone.user_vectors(frames), original.user_vectors(frames))


def test_a_loaded_backbone_is_frozen_and_in_evaluation_mode(folder: Path) -> None:
    backbone = load_backbone(folder).backbone
    assert not backbone.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_the_identity_can_be_read_without_the_weights(folder: Path) -> None:
    fingerprint = load_backbone(folder).fingerprint
    (folder / WEIGHTS).unlink()
    info = read_info(folder)
    assert (info.spec, info.items, info.fingerprint) == (TINY, ITEMS, fingerprint)


def test_saving_the_same_backbone_again_gives_the_same_fingerprint(folder: Path) -> None:
    loaded = load_backbone(folder)
    again = save_backbone(folder, loaded.backbone, ITEMS, {"epochs": 9})
    assert again == loaded.fingerprint


def test_the_fingerprint_depends_on_weights_items_and_architecture() -> None:
    weights = random_backbone(TINY).state_dict()
    base = fingerprint_of(TINY, ITEMS, weights)
    one_more = {name: tensor.clone() for name, tensor in weights.items()}
    one_more["blocks.1.norm2.bias"][3] += 1e-6
    others = [
        fingerprint_of(TINY, ITEMS, one_more),
        fingerprint_of(TINY, ITEMS[::-1], weights),
        fingerprint_of(TINY, [*ITEMS[:2], "4"], weights),
        fingerprint_of(replace(TINY, is_causal=False, kernel_size=3), ITEMS, weights),
        fingerprint_of(replace(TINY, dilations=(1, 1)), ITEMS, weights),
        fingerprint_of(replace(TINY, padding="embedded"), ITEMS, weights),
        fingerprint_of(replace(TINY, max_len=6), ITEMS, weights),
        fingerprint_of(replace(TINY, layer_norm_eps=1e-5), ITEMS, weights),
    ]
    assert len({base, *others}) == 1 + len(others)


@pytest.mark.parametrize("items", [ITEMS[:2], [*ITEMS, "4"], ["a", "a", "b"]])
def test_a_vocabulary_that_does_not_fit_is_not_saved(tmp_path: Path, items: list[str]) -> None:
    with pytest.raises(BackboneFolderInvalid, match="do not fit"):
        save_backbone(tmp_path / "backbone", Backbone(TINY), items, {})
    assert not (tmp_path / "backbone").exists()


@pytest.mark.parametrize("file", [SPEC, VOCABULARY])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"5", b"[]", b"null", b'{"a": 1}'])
def test_a_spec_or_vocabulary_that_is_no_such_document_is_refused(
    folder: Path, file: str, content: bytes
) -> None:
    (folder / file).write_bytes(content)
    with pytest.raises(BackboneFolderInvalid, match=file):
        load_backbone(folder)


@pytest.mark.parametrize("file", [SPEC, VOCABULARY, WEIGHTS])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(PeterRecError, match=file):
        load_backbone(folder)


def test_the_training_record_may_be_missing(folder: Path) -> None:
    (folder / RECORD).unlink()
    assert load_backbone(folder).record == {}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"channels": 5}, TensorFileInvalid),
        ({"kernel_size": 3}, TensorFileInvalid),
        ({"dilations": [1, 2, 4]}, TensorFileInvalid),
        ({"dilations": [1, 1]}, BackboneFolderInvalid),
        ({"layer_norm_eps": 1e-5}, BackboneFolderInvalid),
        ({"max_len": 6}, BackboneFolderInvalid),
        ({"padding": "embedded"}, BackboneFolderInvalid),
        ({"item_count": 4}, BackboneFolderInvalid),
        ({"channels": 10**9}, TensorFileInvalid),
        ({"channels": "wide"}, InvalidSpec),
    ],
)
def test_a_changed_spec_is_refused(
    folder: Path, changes: dict[str, object], error: type[PeterRecError]
) -> None:
    document = json.loads((folder / SPEC).read_text())
    document["backbone"] |= changes
    (folder / SPEC).write_text(json.dumps(document))
    with pytest.raises(error):
        load_backbone(folder)


def test_a_changed_fingerprint_is_refused(folder: Path) -> None:
    document = json.loads((folder / SPEC).read_text())
    (folder / SPEC).write_text(json.dumps({**document, "fingerprint": "0" * 64}))
    with pytest.raises(BackboneFolderInvalid, match="fingerprint"):
        load_backbone(folder)


def test_a_reordered_vocabulary_is_refused(folder: Path) -> None:
    (folder / VOCABULARY).write_text(json.dumps(ITEMS[::-1]))
    with pytest.raises(BackboneFolderInvalid, match="fingerprint"):
        load_backbone(folder)


def test_weights_with_one_tensor_more_fewer_or_misshapen_are_refused(folder: Path) -> None:
    weights = read_tensors(folder / WEIGHTS)
    fewer = {name: weights[name] for name in list(weights)[1:]}
    misshapen = {**weights, "embedding.weight": torch.zeros(3, 4)}
    for changed in ({**weights, "more": torch.zeros(1)}, fewer, misshapen):
        write_tensors(folder / WEIGHTS, changed)
        with pytest.raises(TensorFileInvalid, match=r"backbone\.safetensors"):
            load_backbone(folder)


def test_no_flipped_byte_of_the_weights_passes(folder: Path) -> None:
    path = folder / WEIGHTS
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(PeterRecError):
            load_backbone(folder)
