"""The plain reference network: what it may see, and that padding changes nothing."""

from itertools import product

import pytest
import torch
from torch import Tensor

from peterrec.model.errors import InvalidSpec
from peterrec.model.insertions import INSERTIONS
from peterrec.model.network.backbone import Backbone, new_patch, pool
from peterrec.model.network.collate import frame_histories
from peterrec.model.spec import CLS, PAD, BackboneSpec, Padding, PatchGeometry
from tests.model.random_tasks import random_backbone

SPEC = BackboneSpec(item_count=12, channels=8, dilations=(1, 2), max_len=9)
NON_CAUSAL = BackboneSpec(
    item_count=12, channels=8, dilations=(1, 2), kernel_size=5, is_causal=False, max_len=9
)


def geometry_of(insertion: str, has_inner_skip: bool = False) -> PatchGeometry:
    return PatchGeometry(
        insertion=insertion,
        bottleneck=4,
        blocks=(0, 1),
        cardinality=2,
        has_inner_skip=has_inner_skip,
        has_norms=True,
        has_cls=True,
    )


def tokens_of(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)


def test_causal_states_ignore_future_items() -> None:
    backbone = random_backbone(SPEC)
    short = backbone.hidden(tokens_of([5, 6, 7]))
    for future in ([8, 9, CLS], [4, 4, 4]):
        longer = backbone.hidden(tokens_of([5, 6, 7, *future]))
        torch.testing.assert_close(longer[:, :3], short)


def test_non_causal_states_see_future_items() -> None:
    backbone = random_backbone(NON_CAUSAL)
    first = backbone.hidden(tokens_of([5, 6, 7, 8]))[:, 0]
    other = backbone.hidden(tokens_of([5, 6, 7, 9]))[:, 0]
    assert not torch.allclose(first, other, atol=1e-3)


@pytest.mark.parametrize("kernel_size", [2, 3, 5])
def test_the_last_causal_state_sees_its_receptive_field_and_no_more(kernel_size: int) -> None:
    spec = BackboneSpec(item_count=12, channels=8, dilations=(1, 2), kernel_size=kernel_size)
    backbone = random_backbone(spec)
    field = 1 + (kernel_size - 1) * sum(spec.conv_dilations)
    row = torch.randint(4, 16, (1, field + 1))
    beyond, within = row.clone(), row.clone()
    beyond[0, 0] = 4 + (row[0, 0] - 3) % 12
    within[0, 1] = 4 + (row[0, 1] - 3) % 12
    last = backbone.hidden(row)[:, -1]
    assert torch.equal(backbone.hidden(beyond)[:, -1], last)
    assert not torch.equal(backbone.hidden(within)[:, -1], last)


@pytest.mark.parametrize(("spec", "is_patched"), list(product((SPEC, NON_CAUSAL), (False, True))))
def test_exact_padding_equals_the_row_alone_whatever_the_batch(
    spec: BackboneSpec, is_patched: bool
) -> None:
    backbone = random_backbone(spec)
    patch = new_patch(backbone, geometry_of("parallel2", has_inner_skip=True))
    weights = patch.weights() if is_patched else None
    histories = [[4, 5], [], [6, 7, 8, 9, 10, 11, 12, 13], [14]]
    together = backbone.user_vectors(frame_histories(histories, spec), weights)
    alone = [backbone.user_vectors(frame_histories([h], spec), weights)[0] for h in histories]
    torch.testing.assert_close(together, torch.stack(alone))


def test_exact_padding_is_zero_in_every_state() -> None:
    hidden = random_backbone(SPEC).hidden(tokens_of([PAD, PAD, 5, CLS]))
    assert torch.equal(hidden[:, :2], torch.zeros(1, 2, 8))


@pytest.mark.parametrize("is_causal", [True, False])
def test_embedded_padding_passes_through_the_network(is_causal: bool) -> None:
    spec = BackboneSpec(
        item_count=12,
        channels=8,
        dilations=(1, 2),
        is_causal=is_causal,
        padding="embedded",
        max_len=5,
    )
    backbone = random_backbone(spec)
    frames = frame_histories([[5, 6]], spec)
    users = backbone.user_vectors(frames)
    rows = backbone.embedding(frames)
    hidden = backbone.encode(rows)
    expected = hidden[:, -1] if is_causal else hidden[:, -1] + hidden[:, 0]
    assert torch.equal(users, expected)
    backbone.embedding.weight[PAD] += 1
    assert not torch.allclose(backbone.user_vectors(frames), users)


@pytest.mark.parametrize("padding", ["exact", "embedded"])
def test_the_non_causal_user_is_the_sum_of_both_cls_states(padding: Padding) -> None:
    spec = BackboneSpec(
        item_count=12, channels=8, dilations=(1,), is_causal=False, padding=padding, max_len=4
    )
    frames = frame_histories([[5], [6, 7, 8]], spec)
    hidden = torch.arange(frames.numel()).reshape(*frames.shape, 1).float()
    first = [row.tolist().index(CLS) for row in frames]
    expected = hidden[[0, 1], first] + hidden[:, -1]
    assert torch.equal(pool(hidden, frames, spec), expected)


@pytest.mark.parametrize("insertion", INSERTIONS)
def test_an_untrained_patch_reproduces_the_backbone(insertion: str) -> None:
    backbone = random_backbone(SPEC)
    frames = frame_histories([[5, 6, 7], [8]], SPEC)
    patch = new_patch(backbone, geometry_of(insertion))
    patched = backbone.hidden(frames, patch.weights())
    torch.testing.assert_close(patched, backbone.hidden(frames), rtol=0, atol=1e-6)


def test_an_inner_skip_changes_the_backbone_from_the_start() -> None:
    backbone = random_backbone(SPEC)
    frames = frame_histories([[5, 6, 7]], SPEC)
    patch = new_patch(backbone, geometry_of("parallel2", has_inner_skip=True))
    patched = backbone.hidden(frames, patch.weights())
    assert not torch.allclose(patched, backbone.hidden(frames), atol=1e-2)


def test_a_patch_leaves_unpatched_blocks_alone() -> None:
    backbone = random_backbone(SPEC)
    geometry = PatchGeometry(insertion="serial2", bottleneck=4, blocks=(1,), has_norms=True)
    patch = new_patch(backbone, geometry)
    torch.nn.init.normal_(patch.up)
    weights = patch.weights()
    x = torch.randn(2, 5, 8)
    lower, upper = backbone.blocks
    assert torch.equal(lower(x, None, weights), lower(x, None, None))
    assert not torch.allclose(upper(x, None, weights), upper(x, None, None), atol=1e-3)


def test_a_patch_replaces_the_second_norm_and_cls() -> None:
    backbone = random_backbone(SPEC)
    patch = new_patch(backbone, geometry_of("serial2"))
    frames = frame_histories([[5, 6]], SPEC)
    plain = backbone.hidden(frames)
    with torch.no_grad():
        patch.get_parameter("cls").add_(1)
    moved = backbone.hidden(frames, patch.weights())
    torch.testing.assert_close(moved[:, :2], plain[:, :2], rtol=0, atol=1e-6)
    assert not torch.allclose(moved[:, 2], plain[:, 2], atol=1e-2)
    with torch.no_grad():
        patch.get_parameter("norm_bias").add_(1)
    assert not torch.allclose(backbone.hidden(frames, patch.weights())[:, :2], plain[:, :2])


def test_a_patch_for_blocks_that_are_not_there_is_refused() -> None:
    geometry = PatchGeometry(insertion="serial2", bottleneck=4, blocks=(1, 2))
    with pytest.raises(InvalidSpec, match="blocks \\[2\\]"):
        new_patch(random_backbone(SPEC), geometry)


def test_convolutions_start_different_from_each_other() -> None:
    convs = [
        block.get_submodule("conv1").get_parameter("weight") for block in Backbone(SPEC).blocks
    ]
    assert not torch.allclose(convs[0], convs[1])
