"""DATA: by name, or three parts from the user's code."""

import pytest
import torch

from neurank.cli.sources import load_data, part
from neurank.errors import DataError

BATCH = "(torch.zeros(2, 3), torch.tensor([0, 1]))"


def made(folder, body, imports="import torch\nimport neurank as nr"):
    path = folder / "d.py"
    path.write_text(f"{imports}\ndef make():\n    {body}\n")
    return load_data(f"{path}:make", batch_size=3)


def test_splits_are_taken_as_they_are(tmp_path):
    splits = made(tmp_path, "return nr.data.load('digits', batch_size=7)")
    assert splits.train.batch_size == 7
    assert part(splits, "train") is splits.train


def test_batches_are_joined_and_cut_anew(tmp_path):
    splits = made(tmp_path, f"b = {BATCH}\n    return [b, b], [b], [b]")
    assert splits.train.examples == 4
    assert [len(targets) for _, targets in splits.train] == [3, 1]
    assert splits.validation.targets.tolist() == [0, 1]
    assert splits.test.targets.dtype == torch.int64


def test_all_classes_count_even_if_one_part_lacks_some(tmp_path):
    body = f"b = {BATCH}\n    return [b], [(b[0], b[1] * 0)], [(b[0], b[1] + 3)]"
    assert made(tmp_path, body).classes == ("0", "1", "2", "3", "4")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 3", "returned a int: it must return neurank.data.Splits"),
        (f"return [{BATCH}], [{BATCH}]", "a tuple of 2"),
        (f"return [{BATCH}], 3, [{BATCH}]", "make/validation is a int"),
        (f"return [{BATCH}], [], [{BATCH}]", "has no batches"),
        (f"return [{BATCH}], [torch.zeros(2)], [{BATCH}]", "batch 1 of .*/validation is a Tensor"),
        (f"return [{BATCH}], [(torch.zeros(3), 1)], [{BATCH}]", "a Dataset needs a DataLoader"),
        (
            f"return [{BATCH}, (torch.zeros(2, 4), torch.tensor([0, 1]))], [{BATCH}], [{BATCH}]",
            "do not fit together",
        ),
        (f"return [{BATCH}], [(torch.zeros(1, 3), torch.tensor([-1]))], [{BATCH}]", "label -1"),
        ("return open('nothing')", "FileNotFoundError"),
    ],
)
def test_what_is_no_data_is_refused(tmp_path, body, message):
    with pytest.raises(DataError, match=message):
        made(tmp_path, body)


def test_a_part_for_final_errors_is_not_ranked_on(digits):
    for name in ("test", "all"):
        with pytest.raises(DataError, match="train, validation"):
            part(digits, name)


def test_inputs_are_normalised_where_mean_and_std_stand_behind_the_data():
    plain = load_data("digits").validation.inputs
    found = load_data("digits@0.5/0.25").validation.inputs
    assert torch.equal(found, (plain - 0.5) / 0.25)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digits@0.5,/1", "give numbers, one for all channels"),
        ("digits@0.5/0", "is not positive"),
        ("digits@1,2,3/1,1,1", "3"),
        ("digits@0.5", "no data set is called 'digits@0.5'"),
    ],
)
def test_other_numbers_are_refused(spec, message):
    with pytest.raises(DataError, match=message):
        load_data(spec)
