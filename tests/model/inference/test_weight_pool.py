"""Slots keep their weights while a pool fills, empties and grows."""

import pytest
import torch

from peterrec.model.inference.weight_pool import LARGE_PAGE, WeightPool


def filled(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((3,), value), "bias": torch.tensor(value)}


def test_a_pool_that_grows_keeps_what_its_slots_hold() -> None:
    pool = WeightPool({"weight": (3,), "bias": ()}, torch.device("cpu"), capacity=2)
    slots = [pool.write(filled(float(number))) for number in range(5)]
    assert slots == [0, 1, 2, 3, 4]
    assert pool.tensors["bias"][slots].tolist() == [0, 1, 2, 3, 4]
    assert pool.tensors["weight"][slots, 2].tolist() == [0, 1, 2, 3, 4]


def test_a_released_slot_is_used_again_before_a_new_one() -> None:
    pool = WeightPool({"weight": (3,), "bias": ()}, torch.device("cpu"))
    pool.write(filled(1))
    second = pool.write(filled(2))
    pool.release(second)
    assert pool.write(filled(3)) == second
    assert pool.write(filled(4)) == 2


def test_a_slot_costs_its_weights_and_no_more() -> None:
    assert WeightPool({"weight": (3,), "bias": ()}, torch.device("cpu")).slot_bytes == 16


def test_norms_stay_float32_whatever_the_rest_is_kept_in() -> None:
    shapes = {"patch.down": (3,), "patch.norm_weight": (3,)}
    pool = WeightPool(shapes, torch.device("cpu"), torch.bfloat16, capacity=1)
    third = torch.full((3,), 1 / 3)
    slot = pool.write({"patch.down": third, "patch.norm_weight": third})
    assert torch.equal(pool.tensors["patch.norm_weight"][slot], third)
    assert torch.equal(pool.tensors["patch.down"][slot], third.bfloat16())
    assert pool.slot_bytes == 3 * 2 + 3 * 4


@pytest.mark.gpu
def test_what_awaits_the_writes_beside_reads_what_they_wrote() -> None:
    pool = WeightPool({"weight": (1 << 20,), "bias": ()}, torch.device("cuda"), torch.bfloat16, 2)
    for number in range(5):  # the pool grows meanwhile
        torch.cuda._sleep(1_000_000)
        slot = pool.write({"weight": torch.full((1 << 20,), number), "bias": torch.tensor(0.0)})
        pool.await_writes()
        assert pool.tensors["weight"][slot].eq(number).all()
    assert pool.tensors["weight"][:, 0].tolist()[:5] == [0, 1, 2, 3, 4]


def test_slots_keep_their_weights_when_their_pages_are_joined_to_large_ones() -> None:
    slots = 3 * LARGE_PAGE // (4 * 4096)
    pool = WeightPool({"weight": (4096,)}, torch.device("cpu"))
    for number in range(slots):
        pool.write({"weight": torch.full((4096,), float(number))})
    found = pool.tensors["weight"][:slots]
    assert torch.equal(found, torch.arange(float(slots)).unsqueeze(1).expand(-1, 4096))
