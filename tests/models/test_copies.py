"""Copies in memory that is used again."""

from __future__ import annotations

import torch

from vlascope.models.copies import CopyPool


def test_memory_is_used_again_only_after_it_was_given_back():
    pool = CopyPool()
    x = torch.arange(12.0).reshape(3, 4)
    first, second = pool.copy(x), pool.copy(x + 1)
    assert first.data_ptr() != second.data_ptr()
    assert torch.equal(first, x)
    assert torch.equal(second, x + 1)
    lent = pool.take_lent()
    assert pool.take_lent() == []
    third = pool.copy(x + 2)
    assert third.data_ptr() not in {first.data_ptr(), second.data_ptr()}
    pool.give_back(lent)
    fourth = pool.copy(x + 3)
    assert fourth.data_ptr() in {first.data_ptr(), second.data_ptr()}
    assert torch.equal(fourth, x + 3)
    assert torch.equal(third, x + 2)


def test_copies_have_no_graph_and_own_their_values():
    x = torch.ones(2, 3, requires_grad=True)
    y = x * 2
    copied = CopyPool().copy(y)
    assert not copied.requires_grad
    with torch.no_grad():
        y.zero_()
    assert copied.tolist() == [[2.0] * 3] * 2


def test_permuted_tensors_are_copied_by_value():
    x = torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1)
    assert torch.equal(CopyPool().copy(x), x)


def test_memory_of_shapes_that_are_gone_is_freed():
    pool = CopyPool()
    pool.copy(torch.zeros(5, 5))
    pool.give_back(pool.take_lent())
    pool.copy(torch.zeros(7, 7))
    pool.give_back(pool.take_lent())
    assert [tuple(shape) for shape, _ in pool._free] == [(7, 7)]
    pool.clear()
    assert pool._free == {}
