"""A condensed network as one file: its weights, and all that it takes to build it again.

The file is a sealed safetensors file (``neurank.files``). It holds no code: the architecture comes
from the user's factory, and the plan repeats the surgery on it.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from neurank.condense.costs import Report
from neurank.condense.kept import Plan
from neurank.condense.verify import Check
from neurank.errors import FileError, NeurankError
from neurank.files import Json, read_tensors, write_tensors
from neurank.observe.removal import Removal, check_removal

_KIND = "condensed network"
_STATE = "state/"
_PROBE = "probe"


@dataclass(frozen=True)
class Origin:
    """Where a condensed network comes from.

    Attributes
    ----------
    parent : digest of the weights of the network that was condensed.
    model_class : name of its class.
    removal : what the consumers of removed units receive.
    data : digest of the data that it was measured and verified on.
    example_shape : shape of one example.
    example_dtype : its type, such as ``"float32"``.
    made : dotted names of tensors that the original does not have.
    rewritten : whether the forward pass was rewritten from its trace.
    outputs : how many outputs took the place of the original architecture's, as a one-versus-rest
        head's two do; None where they are the original's, as in files that do not tell.
    """

    parent: str
    model_class: str
    removal: Removal
    data: str
    example_shape: tuple[int, ...]
    example_dtype: str
    made: tuple[str, ...]
    rewritten: bool
    outputs: int | None = None

    def examples(self, count: int) -> Tensor:
        """Make inputs of the right shape and type, numbers in 0 to 1 that are always the same.

        Example
        -------
        >>> Origin("", "Net", "zero", "", (3,), "float32", (), False).examples(1)
        tensor([[0.0000, 0.6180, 0.2361]])
        """
        inputs = torch.zeros(count, *self.example_shape, dtype=torch.float64)
        spread = torch.arange(inputs.numel(), dtype=torch.float64) * 0.6180339887498949
        return spread.frac().reshape(inputs.shape).to(getattr(torch, self.example_dtype))


@dataclass(frozen=True, eq=False)
class Saved:
    """What a file of a condensed network holds.

    Attributes
    ----------
    state : the network's state dict.
    probe : its logits for ``origin.examples(1)``, (1, classes).
    frozen : dotted names of the parameters that require no gradient.
    plan, check, report, origin : as in `neurank.condense.condensed.Condensed`.
    """

    state: Mapping[str, Tensor]
    probe: Tensor
    frozen: tuple[str, ...]
    plan: Plan
    check: Check
    report: Report
    origin: Origin

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file; a file that was there before survives a failure.

        Raises
        ------
        FileError
            The file cannot be written, or the state holds something that is no tensor.
        """
        tensors = {_STATE + name: tensor for name, tensor in self.state.items()}
        metadata: dict[str, Json] = {
            "plan": self.plan.to_json(),
            "check": asdict(self.check),
            "report": self.report.to_json(),
            "origin": asdict(self.origin),
            "frozen": self.frozen,
            "torch": str(torch.__version__),
        }
        write_tensors(path, {**tensors, _PROBE: self.probe}, metadata, kind=_KIND)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Saved":
        """Read a file that `write` wrote.

        Raises
        ------
        FileError
            The file is missing, altered, foreign, or of something else.
        """
        tensors, metadata = read_tensors(path, kind=_KIND)
        try:
            return cls._of(tensors, metadata)
        except (KeyError, TypeError, ValueError) as error:
            reason = str(error) if isinstance(error, NeurankError) else repr(error)
            raise FileError(
                f"{os.fspath(path)} is refused: its content is no condensed network ({reason}); "
                "save it anew"
            ) from error

    @classmethod
    def _of(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> "Saved":
        origin = metadata["origin"]
        lists = ("example_shape", "made")
        if not isinstance(getattr(torch, origin["example_dtype"], None), torch.dtype):
            raise FileError(f"{origin['example_dtype']!r} is no type of numbers")
        if not _is_count_or_none(origin.get("outputs")):
            raise FileError(f"{origin['outputs']!r} is no number of outputs")
        return cls(
            state={
                name.removeprefix(_STATE): tensor
                for name, tensor in tensors.items()
                if name.startswith(_STATE)
            },
            probe=tensors[_PROBE],
            frozen=tuple(metadata["frozen"]),
            plan=Plan.from_json(metadata["plan"]),
            check=Check(**metadata["check"]),
            report=Report.from_json(metadata["report"]),
            origin=Origin(
                **{
                    **origin,
                    **{name: tuple(origin[name]) for name in lists},
                    "removal": check_removal(origin["removal"]),
                }
            ),
        )


def _is_count_or_none(value: object) -> bool:
    return value is None or (type(value) is int and value >= 1)
