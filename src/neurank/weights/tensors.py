"""What scores and masks have in common: a tensor for each of some parameters, in order."""

import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from neurank.errors import FileError, RankingError
from neurank.files import Json, as_json, read_tensors, write_tensors


class UnknownParameterError(RankingError, KeyError):
    """A parameter is not in a mapping; a KeyError too, so that `Mapping.get` finds nothing."""

    __str__ = Exception.__str__  # KeyError's would put the message in quotes


class ByParameter(Mapping[str, Tensor]):
    """A read-only mapping from dotted names of parameters to tensors, in the order given."""

    tensors: Mapping[str, Tensor]
    provenance: Mapping[str, Json]

    def __getitem__(self, parameter: str) -> Tensor:
        """Return the tensor of one parameter; a RankingError lists them if it is not there."""
        if parameter not in self.tensors:
            raise UnknownParameterError(
                f"there is no parameter {parameter!r} here: there are {', '.join(self.tensors)}"
            )
        return self.tensors[parameter]

    def __contains__(self, parameter: object) -> bool:
        return parameter in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __eq__(self, other: object) -> bool:
        """Compare names, their order, every number and the provenance."""
        if type(other) is not type(self):
            return NotImplemented
        assert isinstance(other, ByParameter)
        return (
            list(self) == list(other)
            and all(torch.equal(self[name], other[name]) for name in self)
            and self.provenance == other.provenance
        )

    __hash__ = None  # type: ignore[assignment]  # compared by the content of tensors

    def __reduce__(self) -> tuple[Any, ...]:
        """Let copy.deepcopy work, which the read-only mapping alone does not allow."""
        return type(self), (dict(self.tensors), dict(self.provenance))

    @property
    def count(self) -> int:
        """How many weights there are."""
        return sum(tensor.numel() for tensor in self.tensors.values())


def frozen(tensors: Mapping[str, Tensor], dtype: torch.dtype, what: str) -> Mapping[str, Tensor]:
    """Return a read-only mapping of detached copies on the CPU.

    Raises
    ------
    RankingError
        There is none, or one is no dense tensor.
    """
    if not isinstance(tensors, Mapping) or not tensors:
        raise RankingError(f"{what} are needed for one parameter or more: name -> tensor")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.is_complex():
            raise RankingError(
                f"{name!r} maps to a {type(tensor).__name__}: give the parameter's dotted name and "
                "a real tensor of its shape"
            )
        if tensor.is_meta or tensor.layout != torch.strided:
            raise RankingError(f"{what} of {name!r} are sparse or without data: give a dense one")
    return MappingProxyType(
        {
            name: tensor.detach().cpu().to(dtype).clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
    )


def origin(provenance: Mapping[str, Json]) -> Mapping[str, Json]:
    """Return a copy of a provenance that is known to be JSON.

    Raises
    ------
    RankingError
        It is none.
    """
    try:
        found = as_json(provenance, "provenance")
    except FileError as error:
        raise RankingError(str(error)) from error
    if not isinstance(found, dict):
        raise RankingError(f"provenance is {provenance!r}; give a mapping")
    return found


def save(path: str | os.PathLike[str], it: ByParameter, kind: str) -> None:
    """Write tensors and provenance to one file, see `neurank.files.write_tensors`."""
    metadata: dict[str, Json] = {"parameters": list(it), "provenance": it.provenance}
    write_tensors(path, it.tensors, metadata, kind=kind)


def load(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Tensor], Mapping[str, Json]]:
    """Read what `save` wrote.

    Raises
    ------
    FileError
        The file is missing, altered, foreign, or of another kind.
    """
    tensors, metadata = read_tensors(path, kind=kind)
    names, provenance = metadata.get("parameters"), metadata.get("provenance")
    whole = isinstance(names, list) and sorted(map(str, names)) == sorted(tensors)
    if not whole or not isinstance(provenance, dict):
        raise FileError(
            f"{os.fspath(path)} is refused: its list of parameters does not fit its tensors; save "
            "it anew"
        )
    assert isinstance(names, list)
    return {str(name): tensors[str(name)] for name in names}, provenance
