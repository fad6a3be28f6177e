"""The entry point: rank the units of a trained network."""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace

import torch
from torch import nn

from neurank.errors import MethodError
from neurank.files import Json, as_json
from neurank.journal import open_journal
from neurank.observe.examples import Batch
from neurank.observe.observer import MEMORY, Observer, Precision, choose_layers, described
from neurank.observe.removal import Removal
from neurank.observe.value import Value, value_name
from neurank.rankers.method import Method
from neurank.rankers.opening import versions, watching
from neurank.ranking import LayerRanking, Ranking


def rank(
    model: nn.Module,
    data: Iterable[Batch],
    method: Method,
    *,
    layers: Sequence[str] | None = None,
    value: Value | None = None,
    removal: Removal = "zero",
    seed: int = 0,
    device: str | torch.device | None = None,
    max_memory: int = MEMORY,
    precision: Precision = "own",
    journal: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Ranking:
    """Score every unit of a trained network: higher is more important, signed, never normalised.

    Parameters
    ----------
    model : any module that takes one tensor and returns logits (examples, classes), or a mapping
        with the key "logits". It is run in evaluation mode and comes back exactly as it was.
    data : batches of (inputs, targets): a `DataLoader`, a split of `neurank.data.load`, a list.
        It must give the same batches at every pass; two passes are compared.
    method : `ExactShapley`, `PermutationShapley`, `PairShapley`, `TruncatedShapley`,
        `TwoStageShapley`, `ImportanceSwitch`, `MeanReplacementPenalty`,
        `MeanReplacementSaliency`, `Taylor`, `ClassResponse`, `WeightNorm`, `NonzeroWeights`,
        `RandomScore`.
    layers : dotted module names; None ranks every convolution and linear layer whose units can be
        switched off, but the network's outputs. Layers that cannot be are listed with the reason
        in ``provenance["refused_layers"]``.
    value : what a coalition of units is worth on an example, `(outputs, targets) -> (examples,)`;
        None is `Accuracy()`.
    removal : what "off" means where the unit's consumers read it: "zero"; "mean", "median",
        "minimum" or "maximum" (that statistic of the unit over the data); the same with "pre-"
        before it (the statistic of what its own layer gives, before the nonlinearity); or
        "parameters" (its own weights and bias are zero). Gradients and norms take no notice.
    seed : every random draw follows from it.
    device : where to compute; None is where the model is. The model itself is not moved.
    max_memory : bytes that the contributions or masks of the examples in work may take; fewer
        examples are taken at once where they would need more, but never less than one.
    precision : "own" computes in the model's own numbers; "bfloat16" runs the convolutions below
        a layer in bfloat16, which takes half the time on processors that have it, and
        ``provenance["by_layer"][layer]["decisions_changed"]`` says for which share of coalitions
        the winning class is another one.
    journal : a file that every finished chunk of examples is written to; if it is there, its
        chunks are not computed again, and ``provenance["journal"]`` says how many those were. The
        result is the same bits as without interruption. A file that was begun with another model,
        data, batch size, value, method or version is refused.
    progress : show progress bars.

    Returns
    -------
    Ranking
        Scores, standard errors, counts, status and provenance per layer.

    Raises
    ------
    UnitError
        If a layer is unknown or its units cannot be switched off.
    DataError, ModelError, MethodError
        If data, model or method cannot be used, before long work starts where that can be known.
    FileError
        If the journal is of another run, altered, in use elsewhere, or cannot be written.

    Example
    -------
    >>> import neurank as nr
    >>> model = nr.zoo.digits_net(seed=0)
    >>> data = nr.data.load("digits").validation.first(100)
    >>> ranking = nr.rank(model, data, nr.PermutationShapley(), progress=False)
    >>> list(ranking)
    ['conv1', 'conv2', 'fc1', 'fc2']
    """
    if not isinstance(method, Method) or isinstance(method, type):
        raise MethodError(
            f"method={method!r} is not a ranking method: pass an instance, such as "
            "PermutationShapley()"
        )
    with watching(
        model,
        data,
        value=value,
        removal=removal,
        seed=seed,
        device=device,
        progress=progress,
        memory=max_memory,
        precision=precision,
    ) as observer:
        chosen = choose_layers(observer, layers)
        provenance: dict[str, Json] = {
            "method": {"name": type(method).__name__, "parameters": as_json(_parameters(method))},
            "value": value_name(observer.value),
            **described(observer),
            "versions": versions(),
        }
        with open_journal(journal, _fingerprint(observer, provenance, chosen)) as kept:
            keeping = replace(observer, journal=kept)
            scored: dict[str, LayerRanking] = {}
            records: dict[str, Json] = {}
            for layer in chosen:
                started = time.perf_counter()
                result = method.score(keeping, layer)
                scored[layer] = result.ranking
                seconds = round(time.perf_counter() - started, 3)
                record = {"seconds": seconds, **result.record}
                if precision != "own" and "way" in record:
                    changed = observer.decisions_changed(layer, str(record["way"]))
                    record["decisions_changed"] = changed
                records[layer] = record
            provenance["by_layer"] = records
            if journal is not None:
                provenance["journal"] = {"chunks": len(kept.keys()), "reused": kept.reused}
    return Ranking(scored, provenance)


def _fingerprint(
    observer: Observer, provenance: Mapping[str, Json], layers: Sequence[str]
) -> dict[str, Json]:
    """Return all that the chunks of a run depend on, what is most readable first."""
    sizes = observer.examples.sizes
    data = provenance["data"]
    assert isinstance(data, dict)
    return {
        **provenance,
        "data": {"batch_size": max(sizes), "batches": len(sizes), **data},
        "layers": list(layers),
        "max_memory": observer.memory,
        "threads": torch.get_num_threads(),
    }


def _parameters(method: Method) -> dict[str, object]:
    """Return the fields of a method; a rule such as `StderrBelow(0.001)` as it is written."""
    given = {field.name: getattr(method, field.name) for field in fields(method)}
    return {name: repr(it) if is_dataclass(it) else it for name, it in given.items()}
