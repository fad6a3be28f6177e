"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from neurank.errors import FileError

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A network: lenet, digits_net, vgg16, resnet20, resnet32, resnet44, resnet56, "
        "alexnet, squeezenet1_1, thesis_cnn, with widths as in lenet:10,20,100,25; or a function "
        "of your own that builds one, file.py:factory or package.module:factory. Your code is run.",
        show_default=False,
    ),
]
Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help=r"digits, mnist:DIR, fashion-mnist\[:DIR], cifar10:DIR; folder:DIR, pictures of one "
        "size in DIR/train/CLASS/ and DIR/val/CLASS/; or file.py:factory, a function of your own "
        "that returns the parts (train, validation, test). Your code is run. Behind it @MEAN/STD "
        "normalises inputs, as in cifar10:DIR@0.49,0.48,0.45/0.25,0.24,0.26.",
        show_default=False,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The network's weights, a state dict in .safetensors. May be left out where your "
        "factory returns a trained network.",
        show_default=False,
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        metavar="FILE", help="Where to write the result, a .safetensors file.", show_default=False
    ),
]
Removal = Annotated[
    str,
    typer.Option(
        metavar="zero|mean|median|minimum|maximum|parameters",
        help='What "off" means where a unit is read: 0; its mean, median, smallest or largest '
        "value over the data (with pre- before it, what follows from that of its own layer); or "
        "what is left when its own weights and bias are 0.",
    ),
]
MaxParams = Annotated[
    int | None,
    typer.Option(metavar="N", help="Budget: at most N parameters.", show_default=False),
]
MaxMacs = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Budget: at most N multiply-adds per example.", show_default=False
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Every random draw follows from it.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Examples per batch.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document instead of tables for people.")
]


def check_out(out: Path, *inputs: Path | None) -> Path:
    """Refuse, before any work, a file that cannot be written or that is an input.

    Raises
    ------
    FileError
        The name does not end in ``.safetensors``, its folder is missing, or it is an input.
    """
    if out.suffix != ".safetensors":
        raise FileError(f"--out {out} is not a .safetensors file: give {out.stem}.safetensors")
    if not out.parent.is_dir():
        raise FileError(f"--out {out}: there is no folder {out.parent}; make it first")
    if out.is_dir():
        raise FileError(f"--out {out} is a folder: give the name of a file in it")
    if any(given is not None and given.resolve() == out.resolve() for given in inputs):
        raise FileError(f"--out {out} is one of the inputs, which would be lost: give another name")
    return out
