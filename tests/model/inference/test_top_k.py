"""The best items of large catalogs equal those of a full sort, ties by the lower index."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from peterrec.model.inference import top_k
from peterrec.model.inference.top_k import CatalogRanking, CatalogWeights, Selection
from tests.model.random_tasks import packed

CHANNELS = 8
CPU = torch.device("cpu")
SIZES = [1, 63, 64, 5_000, 40_001]
COUNTS = [1, 10, 100, 1000]


def small_numbers(*shape: int, seed: int) -> Tensor:
    """Whole numbers of which every sum is exact, whatever its order: most scores are tied."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, shape, generator=generator).float()


def real_numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def half_numbers(*shape: int, seed: int) -> Tensor:
    """What a forward or a trainer in bfloat16 leaves."""
    return real_numbers(*shape, seed=seed).bfloat16().float()


def catalog_of(weight: Tensor, bias: Tensor) -> CatalogWeights:
    return CatalogWeights(4 * (weight.numel() + bias.numel()), weight, bias)


def brute_force(user: Tensor, catalog: CatalogWeights, selection: Selection) -> list[int]:
    """Every allowed item sorted by score, then by index."""
    assert catalog.weight is not None
    assert catalog.bias is not None
    scores = (catalog.weight.double() @ user.double() + catalog.bias.double()).numpy()
    allowed = set(range(len(scores)) if selection.candidates is None else selection.candidates)
    allowed -= set(() if selection.excluded is None else selection.excluded)
    return sorted(allowed, key=lambda item: (-scores[item], item))[: selection.top_k]


@pytest.mark.parametrize("items", SIZES)
def test_tied_items_come_in_the_order_of_the_catalog(items: int) -> None:
    catalog = catalog_of(small_numbers(items, CHANNELS, seed=1), small_numbers(items, seed=2))
    users = small_numbers(len(COUNTS), CHANNELS, seed=3)
    selections = [Selection(top_k=count) for count in COUNTS]
    found = CatalogRanking(CPU).top(users, catalog, selections)
    for user, selection, scores in zip(users, selections, found, strict=True):
        assert scores.indices.tolist() == brute_force(user, catalog, selection)


@pytest.mark.parametrize("items", SIZES)
def test_exclusions_make_room_for_the_next_best(items: int) -> None:
    catalog = catalog_of(small_numbers(items, CHANNELS, seed=4), small_numbers(items, seed=5))
    users = small_numbers(len(COUNTS), CHANNELS, seed=6)
    selections = [
        Selection(top_k=count, excluded=np.arange(0, items, 1 + step))
        for step, count in enumerate(COUNTS)
    ]
    found = CatalogRanking(CPU).top(users, catalog, selections)
    for user, selection, scores in zip(users, selections, found, strict=True):
        assert scores.indices.tolist() == brute_force(user, catalog, selection)


@pytest.mark.parametrize("count", COUNTS)
def test_candidates_are_ranked_alone_beside_rows_that_rank_the_whole(count: int) -> None:
    items = 5_000
    catalog = catalog_of(small_numbers(items, CHANNELS, seed=7), small_numbers(items, seed=8))
    users = small_numbers(3, CHANNELS, seed=9)
    candidates = np.random.default_rng(1).integers(0, items, 700)
    selections = [
        Selection(top_k=count),
        Selection(top_k=count, candidates=candidates),
        Selection(top_k=count, candidates=candidates, excluded=candidates[::2]),
    ]
    found = CatalogRanking(CPU).top(users, catalog, selections)
    for user, selection, scores in zip(users, selections, found, strict=True):
        assert scores.indices.tolist() == brute_force(user, catalog, selection)


@pytest.mark.parametrize("numbers", [real_numbers, half_numbers])
@pytest.mark.parametrize("count", COUNTS)
def test_scores_equal_those_of_a_full_sort_in_double_precision(
    numbers: Callable[..., Tensor], count: int
) -> None:
    catalog = catalog_of(numbers(40_001, CHANNELS, seed=10), numbers(40_001, seed=11))
    users = numbers(5, CHANNELS, seed=12)
    found = CatalogRanking(CPU).top(users, catalog, [Selection(top_k=count)] * len(users))
    assert catalog.weight is not None
    assert catalog.bias is not None
    expected = users.double() @ catalog.weight.double().T + catalog.bias.double()
    for row, scores in zip(expected.numpy(), found, strict=True):
        best = np.sort(row)[::-1][:count]
        np.testing.assert_allclose(scores.values, best, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(row[scores.indices], best, rtol=1e-5, atol=1e-5)
        assert len(set(scores.indices.tolist())) == count


def test_a_batch_beyond_the_logits_held_at_once_is_ranked_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(top_k, "LOGITS_AT_ONCE", 12_000)
    catalog = catalog_of(small_numbers(5_000, CHANNELS, seed=13), small_numbers(5_000, seed=14))
    users = small_numbers(7, CHANNELS, seed=15)
    found = CatalogRanking(CPU).top(users, catalog, [Selection(top_k=20)] * 7)
    for user, scores in zip(users, found, strict=True):
        assert scores.indices.tolist() == brute_force(user, catalog, Selection(top_k=20))


def test_a_smaller_catalog_after_a_larger_one_sees_nothing_of_it() -> None:
    ranking = CatalogRanking(CPU)
    users = small_numbers(2, CHANNELS, seed=16)
    for items in (5_000, 65):
        catalog = catalog_of(small_numbers(items, CHANNELS, seed=17), small_numbers(items, seed=1))
        found = ranking.top(users, catalog, [Selection(top_k=100)] * 2)
        for user, scores in zip(users, found, strict=True):
            assert scores.indices.tolist() == brute_force(user, catalog, Selection(top_k=100))


@pytest.mark.parametrize("items", SIZES)
@pytest.mark.parametrize("is_restricted", [False, True])
def test_many_users_get_what_each_gets_alone(
    items: int, is_restricted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(top_k.ROWS_OF_PRODUCT, "cpu", 3)
    catalog = catalog_of(small_numbers(items, CHANNELS, seed=1), small_numbers(items, seed=2))
    users = small_numbers(8, CHANNELS, seed=3)
    random = np.random.default_rng(4)
    excluded = [random.integers(0, items, size=2 * size).tolist() for size in (0, 1, 9, items) * 2]
    may = random.random(items) < 0.5 if is_restricted else np.ones(items, bool)
    bits = np.packbits(may, bitorder="little").tobytes() if is_restricted else None
    found = CatalogRanking(CPU).top_of_all(users, catalog, 20, packed(excluded, before=0), bits)
    for row, (user, own) in enumerate(zip(users, excluded, strict=True)):
        left_out = np.union1d(own, np.flatnonzero(~may)).astype(np.int64)
        best = brute_force(user, catalog, Selection(top_k=20, excluded=left_out))
        assert found.indices[row, : found.counts[row]].tolist() == best


def test_scores_that_are_not_numbers_are_told_not_hidden() -> None:
    catalog = catalog_of(small_numbers(5_000, CHANNELS, seed=18), small_numbers(5_000, seed=19))
    users = torch.full((1, CHANNELS), torch.nan)
    found = CatalogRanking(CPU).top(users, catalog, [Selection(top_k=10)])[0]
    assert np.isnan(found.values).all()


def test_a_row_is_ranked_alike_alone_and_in_a_batch() -> None:
    catalog = catalog_of(real_numbers(5_000, CHANNELS, seed=20), real_numbers(5_000, seed=21))
    users = real_numbers(17, CHANNELS, seed=22)
    ranking = CatalogRanking(CPU)
    batch = ranking.top(users, catalog, [Selection(top_k=100)] * len(users))
    for row, scores in enumerate(batch):
        alone = ranking.top(users[row : row + 1], catalog, [Selection(top_k=100)])[0]
        np.testing.assert_allclose(alone.values, scores.values, rtol=1e-5)


@pytest.mark.parametrize("items", SIZES)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_rows_with_filters_and_without_share_a_batch(items: int, share: float) -> None:
    catalog = catalog_of(small_numbers(items, CHANNELS, seed=7), small_numbers(items, seed=8))
    users = small_numbers(2 * len(COUNTS), CHANNELS, seed=9)
    keep = np.random.default_rng(items).random(items) < share
    bits = np.packbits(keep, bitorder="little").tobytes()
    excluded = np.arange(0, items, 3)
    selections = [
        Selection(count, excluded if at else None, None, allowed=bits if at < 2 else None)
        for count in COUNTS
        for at in (0, 1)
    ]
    selections[-1] = Selection(COUNTS[-1], excluded)
    found = CatalogRanking(CPU).top(users, catalog, selections)
    for user, selection, scores in zip(users, selections, found, strict=True):
        passing = np.flatnonzero(keep) if selection.allowed else np.arange(items)
        among = Selection(selection.top_k, selection.excluded, passing)
        assert scores.indices.tolist() == brute_force(user, catalog, among)
        assert np.isfinite(scores.values).all()
