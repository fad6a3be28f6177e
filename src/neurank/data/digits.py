"""The 8 x 8 handwritten digits that come with scikit-learn."""

import torch

from neurank.data.splits import Split, Splits

CLASSES = tuple("0123456789")


def load_digits(batch_size: int) -> Splits:
    """Load 1,797 real grey digits of 8 x 8 pixels, x/16, in parts of 1,197, 300 and 300.

    The rows are lined up by class, in file order within a class; of every six in that line the
    first is for the test, the second for validation and four are for training. So the classes
    are equally frequent in all parts (within one example of the sixth), and no random generator
    has a say. Within a part the rows are in file order.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
    """
    # scikit-learn takes a second to import, which only those who ask for digits should pay.
    from sklearn import datasets  # noqa: PLC0415

    pictures = datasets.load_digits()
    inputs = torch.from_numpy(pictures.images).float().div(16).unsqueeze(1)
    targets = torch.from_numpy(pictures.target).long()
    place = torch.empty_like(targets)
    place[targets.argsort(stable=True)] = torch.arange(len(targets))
    sixth = place % 6

    def part(name: str, rows: torch.Tensor) -> Split:
        return Split(inputs[rows], targets[rows], f"digits/{name}", batch_size, CLASSES)

    return Splits(
        train=part("train", sixth > 1),
        validation=part("validation", sixth == 1),
        test=part("test", sixth == 0),
        name="digits",
        classes=CLASSES,
    )
