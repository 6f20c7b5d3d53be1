"""Heads of different kinds and widths, scored in one call."""

import numpy as np
import pytest
import torch

from peterrec.model.inference.heads import MixedHeads, Selection
from peterrec.model.kinds import KINDS
from peterrec.model.spec import FIRST_ITEM, BackboneSpec, HeadKind, HeadSpec
from tests.model.random_tasks import random_table

CHANNELS = 8
CPU = torch.device("cpu")
TABLED = BackboneSpec(item_count=50, channels=CHANNELS, dilations=(1,))


def weights(spec: HeadSpec, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator)
        for name, shape in spec.shapes(CHANNELS).items()
    }


def reference(users: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return users @ tensors["head.weight"].T + tensors.get("head.bias", torch.zeros(()))


def test_rows_of_all_kinds_in_one_call_equal_each_kind_alone() -> None:
    specs = [
        HeadSpec("classification", 3),
        HeadSpec("tags", 3),
        HeadSpec("value", 1),
        HeadSpec("classification", 7, has_bias=False),
        HeadSpec("classification", 3),
    ]
    heads = MixedHeads(CHANNELS, CPU)
    tensors = [weights(spec, seed) for seed, spec in enumerate(specs)]
    refs = [heads.add(spec, t) for spec, t in zip(specs, tensors, strict=True)]
    users = torch.randn(5, CHANNELS, generator=torch.Generator().manual_seed(9))
    found = heads.scores(users, refs, [Selection()] * 5)
    for row, (spec, own) in enumerate(zip(specs, tensors, strict=True)):
        expected = KINDS[spec.kind].scores(reference(users[row], own))
        np.testing.assert_allclose(found[row].values, expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "outputs"), [("classification", 10), ("value", 1)])
def test_a_row_has_the_same_bits_alone_and_in_any_batch(kind: HeadKind, outputs: int) -> None:
    channels = 64
    heads, spec = MixedHeads(channels, CPU), HeadSpec(kind, outputs)
    generator = torch.Generator().manual_seed(1)
    shapes = spec.shapes(channels).items()
    tensors = [
        {name: torch.randn(shape, generator=generator) for name, shape in shapes} for _ in range(3)
    ]
    refs = [heads.add(spec, own) for own in tensors] * 9
    users = torch.randn(len(refs), channels, generator=generator)
    batch = heads.scores(users, refs, [Selection()] * len(refs))
    for row, (ref, scores) in enumerate(zip(refs, batch, strict=True)):
        alone = heads.scores(users[row : row + 1], [ref], [Selection()])[0]
        np.testing.assert_array_equal(alone.values, scores.values)


@pytest.mark.parametrize("kind", ["classification", "tags", "value"])
def test_a_raw_row_has_its_networks_logits_beside_rows_that_have_scores(kind: HeadKind) -> None:
    spec = HeadSpec(kind, 1 if kind == "value" else 3)
    heads, own = MixedHeads(CHANNELS, CPU, TABLED.token_count), weights(spec, 1)
    table = random_table(TABLED, spec.outputs, 1)
    ref = heads.add(spec, own, table=table)
    users = torch.randn(3, CHANNELS, generator=torch.Generator().manual_seed(9))
    history = np.arange(FIRST_ITEM, FIRST_ITEM + 9, dtype=np.int32)
    asked = [Selection(), Selection(is_raw=True), Selection()]
    found = heads.scores(users, [ref] * 3, asked, [history] * 3)
    expected = KINDS[kind].scores(reference(users[:1], own) + table.logits([history]))[0]
    np.testing.assert_allclose(found[0].values, expected.numpy(), rtol=1e-5, atol=1e-6)
    raw = reference(users[1], own)
    np.testing.assert_allclose(found[1].values, raw.numpy(), rtol=1e-5, atol=1e-6)


def test_a_temperature_softens_the_classes() -> None:
    spec = HeadSpec("classification", 4)
    heads = MixedHeads(CHANNELS, CPU)
    own = weights(spec, 1)
    users = torch.ones(1, CHANNELS)
    found = heads.scores(users, [heads.add(spec, own, temperature=2.5)], [Selection()])
    expected = torch.softmax(reference(users, own) / 2.5, 1)[0]
    np.testing.assert_allclose(found[0].values, expected.numpy(), rtol=1e-5)


@pytest.fixture
def catalog() -> tuple[MixedHeads, HeadSpec, dict[str, torch.Tensor]]:
    spec = HeadSpec("ranking", 500)
    return MixedHeads(CHANNELS, CPU), spec, weights(spec, 3)


def test_the_top_items_equal_a_full_sort(
    catalog: tuple[MixedHeads, HeadSpec, dict[str, torch.Tensor]],
) -> None:
    heads, spec, own = catalog
    ref = heads.add(spec, own)
    users = torch.randn(6, CHANNELS, generator=torch.Generator().manual_seed(2))
    found = heads.scores(users, [ref] * 6, [Selection(top_k=k) for k in (1, 5, 10, 500, 900, 3)])
    order = reference(users, own).argsort(1, descending=True)
    for row, k in enumerate((1, 5, 10, 500, 900, 3)):
        np.testing.assert_array_equal(found[row].indices, order[row, :k].numpy())


def test_excluded_items_never_appear_and_make_room_for_the_next(
    catalog: tuple[MixedHeads, HeadSpec, dict[str, torch.Tensor]],
) -> None:
    heads, spec, own = catalog
    users = torch.ones(1, CHANNELS)
    order = reference(users, own)[0].argsort(descending=True).numpy()
    selection = Selection(top_k=10, excluded=order[:4])
    found = heads.scores(users, [heads.add(spec, own)], [selection])[0]
    np.testing.assert_array_equal(found.indices, order[4:14])


def test_only_candidates_are_ranked_and_excluded_ones_are_left_out(
    catalog: tuple[MixedHeads, HeadSpec, dict[str, torch.Tensor]],
) -> None:
    heads, spec, own = catalog
    users = torch.ones(1, CHANNELS)
    logits = reference(users, own)[0].numpy()
    candidates = np.array([7, 99, 3, 250], dtype=np.int64)
    selection = Selection(top_k=10, excluded=np.array([99]), candidates=candidates)
    found = heads.scores(users, [heads.add(spec, own)], [selection])[0]
    assert found.indices.tolist() == sorted([7, 3, 250], key=lambda item: -logits[item])


def test_excluding_everything_gives_an_empty_list(
    catalog: tuple[MixedHeads, HeadSpec, dict[str, torch.Tensor]],
) -> None:
    heads, spec, own = catalog
    selection = Selection(top_k=5, excluded=np.arange(spec.outputs))
    found = heads.scores(torch.ones(1, CHANNELS), [heads.add(spec, own)], [selection])[0]
    assert found.indices.tolist() == []


def test_exclusions_that_may_not_be_written_to_are_taken_as_they_are(
    catalog: tuple[MixedHeads, HeadSpec, dict[str, torch.Tensor]],
) -> None:
    heads, spec, own = catalog
    received = np.frombuffer(np.array([1, 2], dtype=np.int64).tobytes(), dtype=np.int64)
    selection = Selection(top_k=500, excluded=received, candidates=received)
    found = heads.scores(torch.ones(1, CHANNELS), [heads.add(spec, own)], [selection])[0]
    assert found.indices.tolist() == []


def test_the_temperature_of_a_ranking_divides_the_scores_and_not_its_table() -> None:
    heads, spec = MixedHeads(CHANNELS, CPU, TABLED.token_count), HeadSpec("ranking", 70)
    own, table = weights(spec, 1), random_table(TABLED, CHANNELS, 2)
    ref = heads.add(spec, own, 2.5, table)
    users = torch.randn(2, CHANNELS, generator=torch.Generator().manual_seed(3))
    before, histories = users.clone(), [[FIRST_ITEM, FIRST_ITEM + 7], []]
    expected = reference(users + table.logits(histories), own) / 2.5
    found = heads.scores(users, [ref, ref], [Selection(top_k=70)] * 2, histories)
    for row, scores in enumerate(found):
        ordered = scores.values[scores.indices.argsort()]
        np.testing.assert_allclose(ordered, expected[row].numpy(), rtol=1e-5, atol=1e-5)
    columns = torch.tensor([3, 1])
    logits = heads.logits(users, ref, columns, histories)
    torch.testing.assert_close(logits, expected[:, columns], rtol=1e-5, atol=1e-5)
    assert torch.equal(users, before)
