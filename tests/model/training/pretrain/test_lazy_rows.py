"""Lazily updated rows move as Adam moves them, and nothing else moves."""

import torch
from torch import nn

from peterrec.model.training.pretrain.lazy_rows import LazyRows

ROWS = torch.tensor([4, 1, 2])


def table_and_optimizer():
    table = nn.Parameter(torch.arange(18.0).view(6, 3))
    return table, torch.optim.Adam([table], lr=0.1)


def step(table, optimizer, gradient):
    rows = LazyRows(table, ROWS)
    (rows.weight * gradient).sum().backward()
    rows.update(optimizer)


def test_read_rows_move_as_dense_adam_moves_them_and_others_stay():
    lazy, optimizer = table_and_optimizer()
    dense, dense_optimizer = table_and_optimizer()
    before = lazy.detach().clone()
    for size in (1.0, -3.0, 0.5):
        gradient = size * torch.arange(9.0).view(3, 3)
        step(lazy, optimizer, gradient)
        dense.grad = torch.zeros_like(dense).index_copy_(0, ROWS, gradient)
        dense_optimizer.step()
    torch.testing.assert_close(lazy[ROWS], dense[ROWS])
    others = torch.tensor([0, 3, 5])
    assert torch.equal(lazy[others], before[others])


def test_tokens_read_what_the_table_holds():
    table, _ = table_and_optimizer()
    tokens = torch.tensor([2, 4, 2])
    assert torch.equal(LazyRows(table, torch.unique(tokens)).read(tokens), table[tokens])


def test_the_table_itself_gets_no_gradient():
    table, optimizer = table_and_optimizer()
    step(table, optimizer, torch.ones(3, 3))
    assert table.grad is None
