"""The output layer that all kinds share."""

import torch

from peterrec.model.network.heads import Head
from peterrec.model.spec import HeadSpec


def test_logits_are_linear_in_the_user_vector() -> None:
    head = Head(HeadSpec("tags", 2), channels=3)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 2, 3], [0, 0, -1]]))
        head.get_parameter("bias").copy_(torch.tensor([10.0, 0]))
    assert head.logits(torch.tensor([[1.0, 1, 1]])).tolist() == [[16.0, -1.0]]


def test_a_head_names_its_tensors_as_its_spec_does() -> None:
    for spec in (HeadSpec("tags", 2), HeadSpec("ranking", 5, has_bias=False)):
        named = Head(spec, channels=3).named()
        assert {name: tuple(t.shape) for name, t in named.items()} == spec.shapes(3)


def test_the_same_seed_starts_the_same_head() -> None:
    spec = HeadSpec("tags", 4)
    one, two = (Head(spec, 3, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one.weight, two.weight)
