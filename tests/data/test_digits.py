import torch
from sklearn import datasets

from neurank.data import load


def parts(splits):
    return {"train": splits.train, "validation": splits.validation, "test": splits.test}


def test_the_stated_sizes(digits):
    sizes = {name: part.examples for name, part in parts(digits).items()}
    assert sizes == {"train": 1197, "validation": 300, "test": 300}


def test_the_parts_are_disjoint_and_together_the_whole(digits):
    def keys(inputs):
        return sorted(tuple(picture.flatten().tolist()) for picture in inputs)

    whole = torch.from_numpy(datasets.load_digits().images).float() / 16
    together = torch.cat([part.inputs for part in parts(digits).values()])
    assert keys(together) == keys(whole)
    assert len(set(keys(whole))) == len(whole)


def test_every_picture_keeps_its_label(digits):
    pictures = datasets.load_digits()
    label_of = {
        tuple((picture / 16).flatten().tolist()): label
        for picture, label in zip(pictures.images, pictures.target, strict=True)
    }
    for part in parts(digits).values():
        for picture, label in zip(part.inputs, part.targets.tolist(), strict=True):
            assert label_of[tuple(picture.flatten().tolist())] == label


def test_classes_are_equally_frequent_in_all_parts(digits):
    totals = sum(part.targets.bincount() for part in parts(digits).values())
    for name, share in {"train": 4 / 6, "validation": 1 / 6, "test": 1 / 6}.items():
        counts = parts(digits)[name].targets.bincount()
        assert (counts - totals * share).abs().max() <= 1


def test_form_and_range(digits):
    for name, part in parts(digits).items():
        assert part.inputs.shape[1:] == (1, 8, 8)
        assert part.inputs.dtype == torch.float32
        assert (part.inputs.min(), part.inputs.max()) == (0, 1)
        assert part.name == f"digits/{name}"
        assert part.classes == digits.classes == tuple("0123456789")


def test_the_same_every_time(digits):
    again = load("digits")
    assert torch.equal(again.test.inputs, digits.test.inputs)
    assert again.test.targets[:10].tolist() == [0, 2, 4, 1, 7, 9, 6, 5, 8, 3]
