"""A published checkpoint becomes a backbone folder that computes what the published network did."""

import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from peterrec.model.errors import (
    InvalidSpec,
    PathMissing,
    ReferenceVariablesInvalid,
    TensorFileInvalid,
    TensorFlowMissing,
    VocabularyMismatch,
)
from peterrec.model.files.backbone_folder import LoadedBackbone, load_backbone
from peterrec.model.network.collate import frame_histories
from peterrec.model.parity.import_checkpoint import ImportSettings, import_reference
from peterrec.model.spec import CLS, FIRST_ITEM, MASK, PAD, UNK
from tests.model.reference_case import Net, Reference, write_case, write_npz

PADDED_TO = 7
PAD_ITEM = 5
HISTORIES = [[1, 2, 3], [16, 4, 5, 9, 1, 1, 2], [8]]
CAUSAL = Net("net", "causal_pretrain", kernel=5, dilations=(1, 4, 2))
CLOZE = Net("net", "noncausal_pretrain", is_causal=False)
SETTINGS = ImportSettings(max_len=PADDED_TO, pad_item=str(PAD_ITEM))
FIRST_CONV = "nextitnet_residual_blockdecoder_layer_0_1/dilated_conv1/weight"


def imported(folder: Path, net: Net, settings: ImportSettings) -> tuple[Reference, LoadedBackbone]:
    reference = write_case(folder, net)
    source = folder / "weights_net.safetensors"
    import_reference(source, folder / "backbone", settings)
    return reference, load_backbone(folder / "backbone")


def hidden_of(loaded: LoadedBackbone) -> NDArray[np.float32]:
    """Our hidden states of HISTORIES, given as reference ids."""
    tokens = [[FIRST_ITEM + item - 1 for item in history] for history in HISTORIES]
    frames = frame_histories(tokens, loaded.backbone.spec)
    states: NDArray[np.float32] = loaded.backbone.hidden(frames).numpy()
    return states


def padded(pad: int) -> list[list[int]]:
    return [[pad] * (PADDED_TO - len(history)) + history for history in HISTORIES]


@pytest.mark.parametrize(("pad_item", "pad"), [(str(PAD_ITEM), PAD_ITEM), (None, 0)])
def test_a_causal_backbone_reproduces_the_published_states(
    tmp_path: Path, pad_item: str | None, pad: int
) -> None:
    settings = replace(SETTINGS, pad_item=pad_item)
    reference, loaded = imported(tmp_path, CAUSAL, settings)
    rows = np.array([[*row, 0] for row in padded(pad)], np.int32)
    np.testing.assert_allclose(hidden_of(loaded), reference.hidden(rows)[0], rtol=0, atol=1e-5)


def test_a_non_causal_backbone_reproduces_the_published_states(tmp_path: Path) -> None:
    reference, loaded = imported(tmp_path, CLOZE, replace(SETTINGS, is_causal=False))
    rows = np.array([[0, *row, 0] for row in padded(PAD_ITEM)], np.int32)
    np.testing.assert_allclose(hidden_of(loaded), reference.hidden(rows)[0], rtol=0, atol=1e-5)


def test_geometry_is_read_from_names_and_shapes(tmp_path: Path) -> None:
    _, loaded = imported(tmp_path, CAUSAL, SETTINGS)
    spec = loaded.backbone.spec
    assert spec.dilations == (1, 4, 2)
    assert (spec.kernel_size, spec.channels, spec.item_count) == (5, 12, 16)
    assert (spec.padding, spec.max_len, spec.layer_norm_eps) == ("embedded", PADDED_TO, 1e-8)


def test_row_0_becomes_unk_cls_and_mask_and_the_pad_item_becomes_pad(tmp_path: Path) -> None:
    reference, loaded = imported(tmp_path, CAUSAL, SETTINGS)
    table = loaded.backbone.embedding.weight.numpy()
    rows = reference.weights["allitem_embeddings"].astype(np.float32)
    for token in (UNK, CLS, MASK):
        np.testing.assert_array_equal(table[token], rows[0])
    np.testing.assert_array_equal(table[PAD], rows[PAD_ITEM])
    np.testing.assert_array_equal(table[FIRST_ITEM:], rows[1:])


def test_items_are_named_by_the_vocabulary_file(tmp_path: Path) -> None:
    reference = write_case(tmp_path, CAUSAL)
    names = [f"film-{number}" for number in range(1, 17)]
    (tmp_path / "items.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    import_reference(
        tmp_path / "weights_net.safetensors",
        tmp_path / "backbone",
        replace(SETTINGS, pad_item="film-3"),
        tmp_path / "items.txt",
    )
    loaded = load_backbone(tmp_path / "backbone")
    assert loaded.items == names
    pad = loaded.backbone.embedding.weight[PAD].numpy()
    np.testing.assert_array_equal(pad, reference.weights["allitem_embeddings"][3].astype("f4"))


def test_items_are_numbered_without_a_vocabulary(tmp_path: Path) -> None:
    _, loaded = imported(tmp_path, CAUSAL, SETTINGS)
    assert loaded.items == [str(number) for number in range(1, 17)]


def test_npz_with_tensor_suffixes_and_optimizer_state_gives_the_same_backbone(
    tmp_path: Path,
) -> None:
    _, loaded = imported(tmp_path, CAUSAL, SETTINGS)
    weights = load_file(tmp_path / "weights_net.safetensors")
    arrays: dict[str, NDArray[np.generic]] = {f"{n}:0": w for n, w in weights.items()}
    arrays |= {f"{name}/Adam_1": np.zeros(3, "f4") for name in weights}
    arrays |= {"beta1_power": np.array(0.1, "f4"), "global_step": np.array(7)}
    write_npz(tmp_path / "variables.npz", arrays)
    result = import_reference(tmp_path / "variables.npz", tmp_path / "again", SETTINGS)
    assert result.fingerprint == loaded.fingerprint
    assert result.unused == ()


def test_heads_and_patches_are_left_out_and_named(tmp_path: Path) -> None:
    write_case(tmp_path, CAUSAL)
    weights = load_file(tmp_path / "weights_net.safetensors")
    weights |= load_file(tmp_path / "weights_net_extra.safetensors")
    save_file(weights, tmp_path / "all.safetensors")
    result = import_reference(tmp_path / "all.safetensors", tmp_path / "backbone", SETTINGS)
    assert result.unused == ("logits/bias", "logits/weight")
    record = load_backbone(tmp_path / "backbone").record
    assert record["unused_variables"] == ["logits/bias", "logits/weight"]


def damaged(folder: Path, **changes: NDArray[np.float32] | None) -> Path:
    write_case(folder, CAUSAL)
    weights = {**load_file(folder / "weights_net.safetensors"), **changes}
    kept = {name: weight for name, weight in weights.items() if weight is not None}
    save_file(kept, folder / "damaged.safetensors")
    return folder / "damaged.safetensors"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"allitem_embeddings": None}, "allitem_embeddings is missing"),
        ({"allitem_embeddings": np.zeros((17, 8), "f4")}, r"not \(1, 5, 8, 8\)"),
        ({"allitem_embeddings": np.full((17, 12), np.nan, "f4")}, "not finite"),
        ({"allitem_embeddings": np.zeros(17, "f4")}, "not 2 axes"),
        ({FIRST_CONV: None}, "dilated_conv1/weight is missing"),
        ({FIRST_CONV: np.zeros((5, 12, 12), "f4")}, "not 4 axes"),
        ({FIRST_CONV: np.zeros((1, 3, 12, 12), "f4")}, r"\(1, 5, 12, 12\), not \(1, 3"),
        ({FIRST_CONV: np.full((1, 5, 12, 12), np.inf, "f4")}, "not finite"),
        ({FIRST_CONV.replace("conv1", "conv2"): None}, "dilated_conv2/weight is missing"),
        ({FIRST_CONV.replace("_0_1", "_0_2"): np.zeros((1, 1), "f4")}, "not 0, 1, 2"),
        ({FIRST_CONV.replace("_0_1", "_7_1"): np.zeros((1, 1), "f4")}, "not 0, 1, 2"),
        ({f"{FIRST_CONV}:0": np.zeros((1, 5, 12, 12), "f4")}, "twice"),
    ],
)
def test_variables_that_are_no_network_are_refused(
    tmp_path: Path, changes: dict[str, NDArray[np.float32] | None], problem: str
) -> None:
    with pytest.raises(ReferenceVariablesInvalid, match=problem):
        import_reference(damaged(tmp_path, **changes), tmp_path / "backbone", SETTINGS)
    assert not (tmp_path / "backbone").exists()


def test_a_file_without_blocks_is_refused(tmp_path: Path) -> None:
    save_file({"other": np.zeros(2, "f4")}, tmp_path / "other.safetensors")
    with pytest.raises(ReferenceVariablesInvalid, match="nextitnet_residual_block"):
        import_reference(tmp_path / "other.safetensors", tmp_path / "backbone", SETTINGS)


def test_a_non_causal_network_needs_an_odd_kernel(tmp_path: Path) -> None:
    write_case(tmp_path, replace(CAUSAL, kernel=2))
    source = tmp_path / "weights_net.safetensors"
    with pytest.raises(InvalidSpec, match="kernel_size 2"):
        import_reference(source, tmp_path / "backbone", replace(SETTINGS, is_causal=False))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a\nb\n", "lists 2 items, the checkpoint has 16"),
        (b"\n".join(b"%d" % (n % 15) for n in range(16)), "line 16: 0 is already on line 1"),
        (b"\n".join(b"%d" % n for n in range(14)) + b"\n\nx", "line 15: the id is empty"),
        (b"\xff\xfe\xfa", "not a readable text"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    write_case(tmp_path, CAUSAL)
    (tmp_path / "items.txt").write_bytes(content)
    source = tmp_path / "weights_net.safetensors"
    with pytest.raises(VocabularyMismatch, match=problem):
        import_reference(source, tmp_path / "backbone", SETTINGS, tmp_path / "items.txt")


def test_a_pad_item_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    write_case(tmp_path, CAUSAL)
    source = tmp_path / "weights_net.safetensors"
    with pytest.raises(VocabularyMismatch, match="the padding item '17'"):
        import_reference(source, tmp_path / "backbone", replace(SETTINGS, pad_item="17"))


@pytest.mark.parametrize("name", ["lost.npz", "lost.safetensors"])
def test_a_lost_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(PathMissing, match=name):
        import_reference(tmp_path / name, tmp_path / "backbone", SETTINGS)


@pytest.mark.parametrize("name", ["model.ckpt", "weights.pickle"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(TensorFileInvalid, match=name):
        import_reference(tmp_path / name, tmp_path / "backbone", SETTINGS)


def test_a_pickle_inside_an_npz_is_never_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", allitem_embeddings=np.array([object()]))
    with pytest.raises(TensorFileInvalid, match=r"evil\.npz"):
        import_reference(tmp_path / "evil.npz", tmp_path / "backbone", SETTINGS)


@pytest.mark.skipif(find_spec("tensorflow") is not None, reason="tensorflow is installed")
def test_a_checkpoint_without_tensorflow_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt.index").write_bytes(b"index")
    with pytest.raises(TensorFlowMissing, match=r"peterrec-serving\[reference\]"):
        import_reference(tmp_path / "model.ckpt", tmp_path / "backbone", SETTINGS)


@pytest.mark.skipif(find_spec("tensorflow") is None, reason="needs tensorflow")
def test_a_checkpoint_gives_the_same_backbone_as_its_variables(tmp_path: Path) -> None:
    import tensorflow

    _, loaded = imported(tmp_path, CAUSAL, SETTINGS)
    weights = load_file(tmp_path / "weights_net.safetensors")
    v1 = tensorflow.compat.v1
    with v1.Graph().as_default(), v1.Session() as session:
        variables = [v1.Variable(weight, name=name) for name, weight in weights.items()]
        session.run(v1.global_variables_initializer())
        prefix = v1.train.Saver(variables).save(session, str(tmp_path / "model.ckpt"))
    result = import_reference(Path(prefix), tmp_path / "again", SETTINGS)
    assert result.fingerprint == loaded.fingerprint


def test_the_command_writes_a_folder_that_opens(tmp_path: Path) -> None:
    write_case(tmp_path, CLOZE)
    source, out = tmp_path / "weights_net.safetensors", tmp_path / "backbone"
    options = ["--out", str(out), "--pad-item", "5", "--max-len", "9", "--no-causal", "--quiet"]
    command = [sys.executable, "-P", "-m", "peterrec", "import-reference", str(source), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    loaded = load_backbone(out)
    assert loaded.fingerprint in done.stdout
    assert (loaded.backbone.spec.max_len, loaded.backbone.spec.is_causal) == (9, False)


def test_the_imported_states_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    _, loaded = imported(tmp_path, CAUSAL, SETTINGS)
    together = hidden_of(loaded)
    tokens = [[FIRST_ITEM + item - 1 for item in HISTORIES[0]]]
    alone = loaded.backbone.hidden(frame_histories(tokens, loaded.backbone.spec))
    torch.testing.assert_close(alone[0], torch.from_numpy(together[0]), rtol=0, atol=1e-6)
