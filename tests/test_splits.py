"netinv.splits: every beginning of the order is stratified, and its end is the validation part."

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netinv.splits import Split, _n_valid, stratified_order, stratified_subset, train_and_valid


def numbered(labels: list[int]) -> Split:
    "Images of one pixel, which is their number."
    return Split(torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1), torch.tensor(labels))


def numbers(split: Split) -> list[int]:
    return split.images.flatten().tolist()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=7), st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_every_prefix_is_stratified(counts, seed):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    order = stratified_order(labels, seed)
    total = len(labels)
    assert torch.equal(order.sort().values, torch.arange(total))
    taken = torch.nn.functional.one_hot(labels[order], len(counts)).cumsum(0)
    share = torch.arange(1, total + 1)[:, None] * torch.tensor(counts)  # exact: both sides times the total
    assert ((taken * total - share).abs() < total).all()


@pytest.mark.parametrize("seed, first", [(0, [44, 71, 19, 37, 69, 53, 93, 42]), (5, [11, 78, 22, 39, 81, 23, 97, 42])])
def test_subsets_are_those_of_earlier_versions(seed, first):
    "Stored results name a subset by its size and seed alone."
    labels = torch.arange(3).repeat_interleave(torch.tensor([60, 30, 10]))
    assert stratified_order(labels, seed)[:8].tolist() == first
    for valid_size in (None, 0, 40):
        train, _ = train_and_valid(numbered(labels.tolist()), None, 8, valid_size, seed)
        assert numbers(train) == sorted(first)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.data())
@settings(max_examples=40, deadline=None)
def test_subsets_are_nested_and_keep_the_order(labels, draw):
    n, m = sorted(draw.draw(st.tuples(*[st.integers(1, len(labels))] * 2)))
    small, large = (numbers(stratified_subset(numbered(labels), size, seed=3)) for size in (n, m))
    assert len(small) == n and set(small) <= set(large) and large == sorted(large)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=120), st.integers(0, 2**31), st.data())
@settings(max_examples=100, deadline=None)
def test_training_begins_and_validation_ends_one_order(labels, seed, draw):
    whole, total = numbered(labels), len(labels)
    valid_size = draw.draw(st.none() | st.integers(0, total - 1))
    train, valid = train_and_valid(whole, None, None, valid_size, seed)
    rest, aside = numbers(train), numbers(valid)
    assert sorted(rest + aside) == list(range(total)) and rest == sorted(rest) and aside == sorted(aside)
    assert valid_size in (None, len(valid)) and valid.images.shape[1:] == whole.images.shape[1:]
    few, same_valid = train_and_valid(whole, None, draw.draw(st.integers(1, len(rest))), valid_size, seed)
    assert numbers(same_valid) == aside and set(numbers(few)) <= set(rest)
    assert numbers(few) == numbers(stratified_subset(whole, len(few), seed))  # what it was before there was a part
    for part in (train, valid, few):
        classes = range(5)
        taken, share = (np.array([list(of).count(c) for c in classes]) for of in (part.labels.tolist(), labels))
        assert (np.abs(taken * total - len(part) * share) < total).all()  # to within one image of each class


@pytest.mark.parametrize("n, classes, expected", [
    (9, 1, 0), (10, 1, 1), (29, 3, 0), (30, 3, 3), (39, 3, 3), (49_999, 10, 4999), (60_000, 10, 5000),
    (60_000, 6000, 0),
])  # fmt: skip
def test_a_tenth_is_set_aside(n, classes, expected):
    "At most 5,000 images, and as many as there are classes or none at all."
    assert _n_valid(torch.arange(n) % classes, None) == expected
