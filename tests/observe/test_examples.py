import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from neurank.errors import DataError
from neurank.observe.examples import check_examples

CPU = torch.device("cpu")


def batches(*sizes, shape=(2,)):
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(size, *shape, generator=generator), torch.arange(size) % 3) for size in sizes
    ]


def check(data):
    return check_examples(data, CPU)


def test_good_data_is_counted_and_comes_back_unchanged():
    data = batches(4, 3)
    examples = check(data)
    assert (examples.count, len(examples), examples.largest_label) == (7, 2, 2)
    for (inputs, targets), (again, labels) in zip(data, examples, strict=True):
        assert torch.equal(inputs, again)
        assert torch.equal(targets, labels)


@given(st.integers(0, 1), st.integers(0, 1), st.integers(0, 2), st.sampled_from(["x", "y"]))
def test_the_digest_sees_every_number(batch, row, column, what):
    data = batches(2, 2, shape=(3,))
    before = check(data).digest
    changed = [(inputs.clone(), targets.clone()) for inputs, targets in data]
    if what == "x":
        changed[batch][0][row, column] += 1e-6
    else:
        changed[batch][1][row] += 1
    assert check(data).digest == before
    assert check(changed).digest != before


def test_the_digest_sees_shapes_and_types():
    data = batches(2)
    others = [
        [(data[0][0].double(), data[0][1])],
        [(data[0][0][:, None], data[0][1])],
        [(data[0][0][:1], data[0][1][:1]), (data[0][0][1:], data[0][1][1:])],
    ]
    digests = {check(data).digest, *(check(other).digest for other in others)}
    assert len(digests) == 4


def test_labels_of_any_integer_type_are_one():
    inputs, targets = batches(3)[0]
    for dtype in (torch.uint8, torch.int32, torch.int64):
        ((_, labels),) = check([(inputs, targets.to(dtype))])
        assert labels.dtype == torch.int64
        assert check([(inputs, targets.to(dtype))]).digest == check([(inputs, targets)]).digest


def test_half_precision_and_odd_strides_can_be_digested():
    inputs, targets = batches(4, shape=(3, 2))[0]
    check([(inputs.bfloat16(), targets)])
    view = inputs.transpose(1, 2)
    assert check([(view, targets)]).digest == check([(view.contiguous(), targets)]).digest


def image(size=3):
    return torch.zeros(size, 2)


LABELS = torch.tensor([0, 1, 2])
REFUSED = {
    "no iterable": (5, "is a int, which cannot be iterated"),
    "empty": ([], "gives no batch at all"),
    "inputs only": ([image()], "batch 1 of the data is a Tensor"),
    "inputs in a list": ([[image()]], "batch 1 of the data is a list of 1"),
    "three things": ([(image(), LABELS, LABELS)], "is a tuple of 3"),
    "a mapping": ([{"x": image(), "y": LABELS}], "is a dict"),
    "second batch without labels": ([(image(), LABELS), image()], "batch 2"),
    "lists for tensors": ([([0, 1], [1, 0])], "holds a list of 2 and a list of 2"),
    "no labels": ([(image(), None)], "holds a Tensor and a NoneType"),
    "soft labels": ([(image(), torch.rand(3, 4))], r"shape \(3, 4\) and type torch.float32"),
    "real labels": ([(image(), torch.rand(3))], "type torch.float32"),
    "yes or no": ([(image(), torch.tensor([True, False, True]))], "type torch.bool"),
    "too few labels": ([(image(), LABELS[:2])], "3 inputs and 2 targets"),
    "nothing in a batch": ([(image(0), LABELS[:0])], "0 inputs and 0 targets"),
    "unlabelled": ([(image(), torch.tensor([0, -1, 2]))], "label -1: labels count from 0"),
    "NaN": ([(image(), LABELS), (image() * torch.nan, LABELS)], "batch 2 has inputs that are NaN"),
    "infinite": ([(image() + torch.inf, LABELS)], "batch 1 has inputs that are NaN or infinite"),
}


@pytest.mark.parametrize(("data", "reason"), REFUSED.values(), ids=REFUSED)
def test_bad_data_is_refused_with_its_batch_and_the_reason(data, reason):
    with pytest.raises(DataError, match=reason):
        check(data)


def dataset(count=10):
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(count, 2, generator=generator), torch.arange(count) % 3)


def test_a_loader_that_drops_its_only_batch_is_empty():
    with pytest.raises(DataError, match="drop_last=True"):
        check(DataLoader(dataset(3), batch_size=4, drop_last=True))


def test_a_shuffled_loader_is_refused():
    with pytest.raises(DataError, match=r"not the same at every pass: batch 1.*shuffle=False"):
        check(DataLoader(dataset(), batch_size=4, shuffle=True))


def test_an_augmented_data_set_is_refused():
    class Noisy(TensorDataset):
        def __getitem__(self, index):
            inputs, target = super().__getitem__(index)
            return inputs + 1e-3 * torch.rand(()), target

    with pytest.raises(DataError, match="random augmentation off"):
        check(DataLoader(Noisy(*dataset().tensors), batch_size=4))


def test_a_generator_can_be_read_once_only():
    with pytest.raises(DataError, match="a generator can be read once only"):
        check(batch for batch in batches(3, 2))


@pytest.mark.parametrize("missing", [True, False])
def test_a_source_that_grows_or_shrinks_is_refused(missing):
    class Changing:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter(batches(3, 2)[: 1 if (self.passes > 1) == missing else 2])

    with pytest.raises(DataError, match="batch 2 differs from what it was, or is missing"):
        check(Changing())


def test_a_later_pass_is_compared_too():
    data = batches(3, 2)
    examples = check(data)
    data[1][0][0, 0] += 1
    with pytest.raises(DataError, match="batch 2 differs"):
        list(examples)


def test_a_loader_of_unknown_length_is_fine():
    class Stream:
        def __iter__(self):
            yield from batches(3, 2)

    assert check(Stream()).count == 5
