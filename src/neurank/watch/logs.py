"""Where looks at a training are written: a folder of Parquet files, or TensorBoard."""

import os
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import pandas as pd

from neurank.errors import FileError
from neurank.watch.states import Vitals


class ParquetLog:
    """Writes each look as a small Parquet file of its own, one row per unit.

    A file is there whole or not at all, so a killed training leaves a log that can be read. Needs
    pyarrow: ``pip install 'neurank[watch]'``.

    Parameters
    ----------
    folder : made if it is missing. Files of earlier looks in it stay.

    Raises
    ------
    FileError
        If pyarrow is not installed, or the folder cannot be made.

    Example
    -------
    >>> import tempfile
    >>> import neurank as nr
    >>> log = ParquetLog(tempfile.mkdtemp())
    >>> log(nr.vitals(nr.zoo.digits_net(seed=0), nr.data.load("digits").validation.first(20)))
    >>> log.read().groupby("layer").unit.count().to_dict()
    {'conv1': 8, 'conv2': 16, 'fc1': 32, 'fc2': 16}
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        _needed("pyarrow", "ParquetLog")
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"{self.folder} cannot be made: {error.strerror}") from error

    def __call__(self, vitals: Vitals) -> None:
        """Write one look."""
        target = self.folder / f"step-{vitals.step:09d}.parquet"
        draft = target.with_suffix(".draft")
        frame = vitals.to_frame(histograms=True)
        small = {name: "float32" for name, kind in frame.dtypes.items() if kind == "float64"}
        frame.astype(small).assign(loss=vitals.loss).to_parquet(draft, index=False)
        draft.replace(target)

    def read(self) -> pd.DataFrame:
        """Read all looks, in the order of their steps.

        Raises
        ------
        FileError
            If there is none.
        """
        files = sorted(self.folder.glob("step-*.parquet"))
        if not files:
            raise FileError(f"{self.folder} has no look in it: no file step-*.parquet")
        return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)


class SummaryWriter(Protocol):
    """What a TensorBoard writer must be able to do."""

    def add_scalar(self, tag: str, value: float, step: int, /) -> Any:
        """Write a number."""

    def add_histogram(self, tag: str, values: Any, step: int, /) -> Any:
        """Write a histogram."""


class TensorBoardLog:
    """Writes to TensorBoard, layer by layer: dead and frozen units, saliencies, norms.

    Parameters
    ----------
    writer : a ``torch.utils.tensorboard.SummaryWriter``, or the folder for a new one, which needs
        ``pip install 'neurank[watch]'``.

    Raises
    ------
    FileError
        If a folder is given and TensorBoard is not installed.

    Example
    -------
    >>> import neurank as nr
    >>> class Printing:
    ...     def add_scalar(self, tag, value, step):
    ...         if tag.endswith("conv1/dead units"):
    ...             print(tag, value)
    ...
    ...     def add_histogram(self, tag, values, step):
    ...         pass
    >>> log, data = TensorBoardLog(Printing()), nr.data.load("digits").validation.first(20)
    >>> log(nr.vitals(nr.zoo.digits_net(seed=0), data, exact=False))
    neurank/conv1/dead units 0.0
    """

    def __init__(self, writer: SummaryWriter | str | os.PathLike[str]) -> None:
        if isinstance(writer, str | os.PathLike):
            made = _needed("torch.utils.tensorboard", "TensorBoardLog").SummaryWriter
            self.writer: SummaryWriter = made(os.fspath(writer))
        else:
            self.writer = writer

    def __call__(self, vitals: Vitals) -> None:
        """Write one look."""
        write, step = self.writer, vitals.step
        write.add_scalar("neurank/loss", vitals.loss, step)
        for name, layer in vitals.layers.items():
            write.add_scalar(f"neurank/{name}/dead units", float(layer.dead.sum()), step)
            write.add_scalar(f"neurank/{name}/frozen units", float(layer.frozen.sum()), step)
            for tag, values in (
                ("mean replacement saliency", layer.signs.saliency),
                ("output gradient", layer.signs.gradient_norm),
                ("incoming weights", layer.signs.weight_norm),
                ("outgoing weights", layer.signs.fan_out_norm),
            ):
                if bool(values.isfinite().all()):  # not all readers have weights to sum up
                    write.add_histogram(f"neurank/{name}/{tag}", values, step)


def _needed(module: str, by: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        raise FileError(
            f"{by} needs {module.rsplit('.', maxsplit=1)[-1]}, which is not installed: "
            "pip install 'neurank[watch]'"
        ) from error
