"""Training's user vectors and gradients are those of the plain forward."""

from dataclasses import replace

import pytest
import torch

from peterrec.model.insertions import INSERTIONS
from peterrec.model.network.backbone import Backbone, new_patch
from peterrec.model.network.collate import frame_histories
from peterrec.model.spec import CLS, FIRST_ITEM, BackboneSpec, PatchGeometry
from peterrec.model.training.finetune.forward import user_states, user_vectors

SPEC = BackboneSpec(item_count=40, channels=6, dilations=(1, 4, 2), max_len=30)

HISTORIES = [list(range(FIRST_ITEM, FIRST_ITEM + length)) for length in (0, 1, 7, 30)]


def disturbed(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("insertion", INSERTIONS)
@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        replace(SPEC, padding="embedded"),
        replace(SPEC, is_causal=False),
        replace(SPEC, kernel_size=5),
        replace(SPEC, dilations=(2, 4, 2)),
    ],
)
@pytest.mark.parametrize("rows", [HISTORIES, HISTORIES[3:]])
def test_training_gives_the_plain_vectors_and_gradients(spec, insertion, rows):
    backbone = Backbone(spec)
    disturbed(backbone)
    geometry = PatchGeometry(insertion, 4, (0, 2), cardinality=2, has_norms=True, has_cls=True)
    patch = new_patch(backbone, geometry, torch.Generator().manual_seed(0))
    disturbed(patch)
    tokens = frame_histories(rows, spec)
    plain = backbone.user_vectors(tokens, patch.weights())
    found_vectors = user_vectors(backbone, tokens, patch.weights())
    gradient = torch.randn(plain.shape, generator=torch.Generator().manual_seed(2))
    expected = torch.autograd.grad((plain * gradient).sum(), list(patch.parameters()))
    found = torch.autograd.grad((found_vectors * gradient).sum(), list(patch.parameters()))
    torch.testing.assert_close(found_vectors, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_without_a_patch_training_gives_the_plain_vectors():
    backbone = Backbone(SPEC)
    disturbed(backbone)
    tokens = frame_histories(HISTORIES, SPEC)
    with torch.no_grad():
        plain, found_vectors = backbone.user_vectors(tokens), user_vectors(backbone, tokens, None)
    torch.testing.assert_close(found_vectors, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, is_causal=False)])
def test_the_top_state_is_the_user_vector_and_the_bottom_one_the_embedding_of_cls(spec):
    backbone = Backbone(spec)
    disturbed(backbone)
    tokens = frame_histories(HISTORIES, spec)
    with torch.no_grad():
        states, plain = user_states(backbone, tokens), backbone.user_vectors(tokens)
    cls = backbone.embedding.weight[CLS] * (1 if spec.is_causal else 2)
    torch.testing.assert_close(states[:, -1], plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(states[:, 0], cls.expand(len(states), -1))
    assert states.shape == (len(HISTORIES), 4, 6)
