"""Specs refuse what no network can be, and survive JSON."""

import json

import pytest

from peterrec.model.errors import InvalidSpec
from peterrec.model.insertions import Insertion, Source
from peterrec.model.spec import (
    FIRST_ITEM,
    BackboneSpec,
    HeadSpec,
    PatchGeometry,
    TableSpec,
    vocabulary_digest,
)

SERIAL2 = PatchGeometry(insertion="serial2", bottleneck=6, blocks=(1, 3))
SERIAL1 = PatchGeometry(insertion="serial1", bottleneck=6, blocks=(1, 3))


def test_a_backbone_spec_survives_json() -> None:
    spec = BackboneSpec(item_count=7, dilations=(1, 2), is_causal=False, padding="embedded")
    assert BackboneSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"item_count": 0}, "item_count"),
        ({"channels": 0}, "channels"),
        ({"dilations": []}, "dilations"),
        ({"dilations": [1, 0]}, "dilations"),
        ({"dilations": 4}, "backbone spec"),
        ({"dilations": ["1"]}, "backbone spec"),
        ({"kernel_size": 1}, "kernel_size"),
        ({"kernel_size": 4, "is_causal": False}, "kernel_size 4"),
        ({"padding": "none"}, "padding 'none'"),
        ({"max_len": 0}, "max_len"),
        ({"layer_norm_eps": 0}, "layer_norm_eps"),
        ({"channels": 64.0}, "channels is 64.0, an integer"),
        ({"item_count": True}, "item_count is True, an integer"),
        ({"item_count": "many"}, "item_count is 'many'"),
        ({"width": 3}, "unknown backbone fields: width"),
    ],
)
def test_a_backbone_that_cannot_be_is_refused(changes: dict[str, object], problem: str) -> None:
    fields = BackboneSpec(item_count=7).to_json() | changes
    with pytest.raises(InvalidSpec, match=problem):
        BackboneSpec.from_json(fields)


def test_a_spec_without_item_count_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="item_count"):
        BackboneSpec.from_json({"dilations": [1]})


def test_special_tokens_precede_the_items() -> None:
    assert BackboneSpec(item_count=7).token_count == FIRST_ITEM + 7


def test_each_block_has_two_dilations_the_second_doubled() -> None:
    assert BackboneSpec(item_count=7, dilations=(1, 4)).conv_dilations == (1, 2, 4, 8)


def test_a_non_causal_frame_has_two_cls() -> None:
    assert BackboneSpec(item_count=7, max_len=5).max_input_len == 6
    assert BackboneSpec(item_count=7, max_len=5, is_causal=False).max_input_len == 7


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"insertion": "serial3"}, "insertion"),
        ({"bottleneck": 0}, "bottleneck"),
        ({"bottleneck": 5, "cardinality": 2}, "not a multiple of cardinality"),
        ({"cardinality": 0}, "cardinality"),
        ({"blocks": (1, 1)}, "ascending"),
        ({"blocks": (-1,)}, ">= 0"),
        ({"has_inner_skip": True}, "parallel"),
    ],
)
def test_a_patch_that_cannot_be_is_refused(changes: dict[str, object], problem: str) -> None:
    fields: dict[str, object] = {"insertion": "serial2", "bottleneck": 6, "blocks": (0,)}
    with pytest.raises(InvalidSpec, match=problem):
        PatchGeometry(**{**fields, **changes})  # type: ignore[arg-type]  # wrong on purpose


def test_two_patches_a_block_are_stacked_in_the_order_of_the_convolutions() -> None:
    found = [SERIAL2.conv_index(block, conv) for block in range(4) for conv in (0, 1)]
    assert found == [None, None, 0, 1, None, None, 2, 3]


def test_one_patch_a_block_sits_at_the_second_convolution() -> None:
    found = [SERIAL1.conv_index(block, conv) for block in range(4) for conv in (0, 1)]
    assert found == [None, None, None, 0, None, None, None, 1]


def test_shapes_follow_the_geometry() -> None:
    geometry = PatchGeometry(
        insertion="serial1", bottleneck=6, blocks=(1, 3), has_norms=True, has_cls=True
    )
    assert geometry.shapes(8) == {
        "patch.down": (2, 8, 6),
        "patch.down_bias": (2, 6),
        "patch.up": (2, 6, 8),
        "patch.up_bias": (2, 8),
        "patch.norm_weight": (2, 8),
        "patch.norm_bias": (2, 8),
        "patch.cls": (8,),
    }


def test_a_head_has_a_bias_only_if_it_says_so() -> None:
    assert HeadSpec("tags", 3).shapes(8) == {"head.weight": (3, 8), "head.bias": (3,)}
    assert HeadSpec("tags", 3, has_bias=False).shapes(8) == {"head.weight": (3, 8)}


@pytest.mark.parametrize(
    ("kind", "outputs", "problem"),
    [("regression", 1, "kind"), ("tags", 0, "at least 1"), ("value", 2, "exactly one")],
)
def test_a_head_that_cannot_be_is_refused(kind: str, outputs: int, problem: str) -> None:
    with pytest.raises(InvalidSpec, match=problem):
        HeadSpec(kind, outputs)


def test_the_vocabulary_digest_depends_on_order() -> None:
    assert vocabulary_digest(["a", "b"]) != vocabulary_digest(["b", "a"])
    assert vocabulary_digest(["a", "b"]) != vocabulary_digest(['a", "b'])


@pytest.mark.parametrize(
    ("convs", "source", "problem"), [(3, "input", "3 convolutions"), (1, "norm", "source 'norm'")]
)
def test_an_insertion_that_no_forward_computes_is_refused_by_name(
    convs: int, source: Source, problem: str
) -> None:
    with pytest.raises(InvalidSpec, match=f"insertion toy: .*{problem}"):
        Insertion("toy", convs, source)


def test_two_weights_of_four_bits_share_a_byte() -> None:
    assert TableSpec(9, bits=4).shapes(7) == {
        "table.items": (9,),
        "table.weight": (9, 4),
        "table.scale": (7,),
    }
    assert TableSpec(9).shapes(7)["table.weight"] == (9, 7)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"items": 0}, "has 0 items"),
        ({"bits": 5}, "bits is 5"),
        ({"counting": "often"}, "counting 'often'"),
        ({"exponent": -0.1}, "exponent is -0.1"),
        ({"exponent": 1.5}, "exponent is 1.5"),
        ({"exponent": float("nan")}, "exponent is nan"),
    ],
)
def test_an_item_table_that_cannot_be_is_refused(changes: dict[str, object], problem: str) -> None:
    with pytest.raises(InvalidSpec, match=problem):
        TableSpec(**{"items": 3, **changes})  # type: ignore[arg-type]  # wrong on purpose
