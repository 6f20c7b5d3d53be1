"""Slots keep their weights while a slab fills, empties and grows."""

import pytest
import torch

from peterrec.model.inference.weight_pool import LARGE_PAGE, Slab


def filled(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((3,), value), "bias": torch.tensor(value)}


def test_a_slab_that_grows_keeps_what_its_slots_hold() -> None:
    slab = Slab({"weight": (3,), "bias": ()}, torch.device("cpu"), capacity=2)
    slots = [slab.write(filled(float(number))) for number in range(5)]
    assert slots == [0, 1, 2, 3, 4]
    assert slab.tensors["bias"][slots].tolist() == [0, 1, 2, 3, 4]
    assert slab.tensors["weight"][slots, 2].tolist() == [0, 1, 2, 3, 4]


def test_a_released_slot_is_used_again_before_a_new_one() -> None:
    slab = Slab({"weight": (3,), "bias": ()}, torch.device("cpu"))
    slab.write(filled(1))
    second = slab.write(filled(2))
    slab.release(second)
    assert slab.write(filled(3)) == second
    assert slab.resident_slots == 2


def test_a_slot_costs_its_weights_and_no_more() -> None:
    assert Slab({"weight": (3,), "bias": ()}, torch.device("cpu")).slot_bytes == 16


def test_norms_stay_float32_whatever_the_rest_is_kept_in() -> None:
    shapes = {"patch.down": (3,), "patch.norm_weight": (3,)}
    slab = Slab(shapes, torch.device("cpu"), torch.bfloat16, capacity=1)
    third = torch.full((3,), 1 / 3)
    slot = slab.write({"patch.down": third, "patch.norm_weight": third})
    assert torch.equal(slab.tensors["patch.norm_weight"][slot], third)
    assert torch.equal(slab.tensors["patch.down"][slot], third.bfloat16())
    assert slab.slot_bytes == 3 * 2 + 3 * 4


@pytest.mark.gpu
def test_what_awaits_the_writes_beside_reads_what_they_wrote() -> None:
    slab = Slab({"weight": (1 << 20,), "bias": ()}, torch.device("cuda"), torch.bfloat16, 2)
    for number in range(5):  # the slab grows meanwhile
        torch.cuda._sleep(1_000_000)
        slot = slab.write({"weight": torch.full((1 << 20,), number), "bias": torch.tensor(0.0)})
        slab.await_writes()
        assert slab.tensors["weight"][slot].eq(number).all()
    assert slab.tensors["weight"][:, 0].tolist()[:5] == [0, 1, 2, 3, 4]


def test_slots_keep_their_weights_when_their_pages_are_joined_to_large_ones() -> None:
    slots = 3 * LARGE_PAGE // (4 * 4096)
    slab = Slab({"weight": (4096,)}, torch.device("cpu"))
    for number in range(slots):
        slab.write({"weight": torch.full((4096,), float(number))})
    found = slab.tensors["weight"][:slots]
    assert torch.equal(found, torch.arange(float(slots)).unsqueeze(1).expand(-1, 4096))
