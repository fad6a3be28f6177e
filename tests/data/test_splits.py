import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neurank.data import Split, Splits
from neurank.errors import DataError


def split_of(examples, batch_size=4, classes=()):
    inputs = torch.arange(examples * 2 * 3, dtype=torch.float32).reshape(examples, 2, 3)
    return Split(inputs, torch.arange(examples) % 3, "toy", batch_size, classes)


@given(examples=st.integers(1, 30), batch_size=st.integers(1, 40))
def test_the_batches_are_the_examples_in_order(examples, batch_size):
    split = split_of(examples, batch_size)
    batches = list(split)
    assert len(batches) == len(split)
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), split.inputs)
    assert torch.equal(torch.cat([targets for _, targets in batches]), split.targets)
    assert all(len(targets) == batch_size for _, targets in batches[:-1])


def test_two_passes_are_equal_even_if_a_network_works_in_place():
    split = split_of(5)
    for inputs, targets in split:
        inputs.mul_(-1)
        targets.add_(1)
    assert torch.equal(split.inputs, split_of(5).inputs)
    assert torch.equal(split.targets, split_of(5).targets)


def test_a_split_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        split_of(3).name = "other"


def test_classes_are_named_by_their_labels_unless_told():
    assert split_of(5).classes == ("0", "1", "2")
    assert split_of(5, classes=("a", "b", "c", "d")).classes == ("a", "b", "c", "d")


def test_a_subset_keeps_the_classes_of_the_whole():
    assert split_of(5).first(1).classes == ("0", "1", "2")


@given(st.lists(st.integers(0, 9), min_size=1))
def test_a_subset_by_indices(rows):
    split = split_of(10)
    for picked in (split.subset(rows), split.subset(torch.tensor(rows))):
        assert torch.equal(picked.inputs, split.inputs[rows])
        assert torch.equal(picked.targets, split.targets[rows])


@given(st.slices(10))
def test_a_subset_by_slice_is_what_a_list_gives(rows):
    chosen = list(range(10))[rows]
    if chosen:
        assert torch.equal(split_of(10).subset(rows).inputs, split_of(10).inputs[chosen])
    else:
        with pytest.raises(DataError, match="none of the 10 rows"):
            split_of(10).subset(rows)


@pytest.mark.parametrize("rows", [[-1], [10], [0, 11], torch.tensor([3, -2])])
def test_rows_that_are_not_there_are_refused(rows):
    with pytest.raises(DataError, match=r"row -?\d+ is not in toy, whose rows are 0 to 9"):
        split_of(10).subset(rows)


@pytest.mark.parametrize("rows", [[0.5], torch.ones(10, dtype=torch.bool)])
def test_rows_are_whole_numbers(rows):
    with pytest.raises(DataError, match="whole numbers"):
        split_of(10).subset(rows)


def test_an_empty_subset_is_refused():
    with pytest.raises(DataError, match="none of the 10 rows"):
        split_of(10).subset([])


def test_the_first_examples():
    assert torch.equal(split_of(10).first(3).inputs, split_of(10).inputs[:3])
    assert split_of(10).first(10).examples == 10


@pytest.mark.parametrize("examples", [0, -1, 11])
def test_the_first_of_too_few_are_refused(examples):
    with pytest.raises(DataError, match="ask for 1 to 10"):
        split_of(10).first(examples)


def test_a_derived_split_says_so_in_its_name():
    assert split_of(10).first(3).name == "toy[:3]"
    assert split_of(10).subset([1, 2]).name == "toy[2 rows]"


def test_rebatched_changes_the_batches_only():
    split = split_of(10).rebatched(5)
    assert len(split) == 2
    assert torch.equal(split.inputs, split_of(10).inputs)


def test_normalized_by_channel():
    inputs = torch.tensor([[[1.0, 3.0], [10.0, 30.0]]])
    split = Split(inputs, torch.tensor([0]), "one").normalized((2.0, 20.0), (1.0, 10.0))
    assert split.inputs.tolist() == [[[-1.0, 1.0], [-1.0, 1.0]]]
    assert inputs[0, 0, 0] == 1.0


def test_normalized_by_one_number():
    split = split_of(4).normalized(1.0, 2.0)
    assert torch.equal(split.inputs, (split_of(4).inputs - 1) / 2)


def test_normalizing_to_mean_0_and_std_1():
    split = split_of(50)
    mean = split.inputs.mean(dim=(0, 2)).tolist()
    std = split.inputs.std(dim=(0, 2)).tolist()
    normalized = split.normalized(mean, std).inputs
    assert torch.allclose(normalized.mean(dim=(0, 2)), torch.zeros(2), atol=1e-5)
    assert torch.allclose(normalized.std(dim=(0, 2)), torch.ones(2), atol=1e-5)


@pytest.mark.parametrize("std", [0.0, -1.0, (1.0, 0.0), float("nan")])
def test_a_std_that_is_not_positive_is_refused(std):
    with pytest.raises(DataError, match="not positive"):
        split_of(4).normalized(0.0, std)


def test_numbers_for_other_channels_are_refused():
    with pytest.raises(DataError, match="3 numbers for 2 channels"):
        split_of(4).normalized((0.0, 0.0, 0.0), 1.0)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True, "4"])
def test_batch_sizes_that_are_none(batch_size):
    with pytest.raises(DataError, match="batch size"):
        split_of(4, batch_size=batch_size)


def test_no_examples():
    with pytest.raises(DataError, match="toy has no examples"):
        split_of(0)


def test_one_target_per_input():
    with pytest.raises(DataError, match="one target per row"):
        Split(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), "toy")


@pytest.mark.parametrize("targets", [torch.zeros(3), torch.zeros(3, 1, dtype=torch.int64)])
def test_targets_are_labels(targets):
    with pytest.raises(DataError, match="one int64 label per example"):
        Split(torch.zeros(3, 2), targets, "toy")


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_without_class(label):
    with pytest.raises(DataError, match=f"label {label}, outside its 3 classes"):
        Split(torch.zeros(2, 2), torch.tensor([0, label]), "toy", classes=("a", "b", "c"))


def test_a_negative_label_has_no_class_by_default():
    with pytest.raises(DataError, match="label -1"):
        Split(torch.zeros(2, 2), torch.tensor([0, -1]), "toy")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_found(value):
    inputs = torch.zeros(4, 2, 2)
    inputs[2, 1, 0] = value
    with pytest.raises(DataError, match="in row 2"):
        Split(inputs, torch.zeros(4, dtype=torch.int64), "toy")


def test_large_finite_values_are_sound():
    inputs = torch.full((4, 2), 3e38)
    assert Split(inputs, torch.zeros(4, dtype=torch.int64), "toy").examples == 4


def test_whole_numbers_are_inputs_too():
    split = Split(torch.zeros(3, 5, dtype=torch.int64), torch.tensor([0, 1, 0]), "tokens")
    assert split.examples == 3


def test_what_a_split_prints():
    assert repr(split_of(1200)) == "Split(toy: 1,200 examples of 2 x 3, 3 classes, batches of 4)"


def test_splits_are_normalized_alike():
    split = split_of(4)
    splits = Splits(split, split, split, "toy", split.classes).normalized(1.0, 2.0)
    for part in (splits.train, splits.validation, splits.test):
        assert torch.equal(part.inputs, (split.inputs - 1) / 2)
