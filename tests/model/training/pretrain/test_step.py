"""The contrastive loss pulls a user's two views together and pushes other users' apart."""

import torch

from peterrec.model.training.pretrain.step import contrastive_loss


def test_matching_views_cost_less_than_swapped_ones():
    views, users = torch.eye(3), torch.arange(3)
    assert contrastive_loss(views, views, users) < contrastive_loss(views, views.roll(1, 0), users)


def test_another_window_of_the_same_user_is_not_a_negative():
    views = torch.ones(2, 3)
    assert contrastive_loss(views, views, torch.tensor([7, 7])).item() == 0.0
    assert contrastive_loss(views, views, torch.tensor([7, 8])).item() > 0.5
