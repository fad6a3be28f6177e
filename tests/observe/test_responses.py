"""Responses of all classes and layers in one pass against loops over examples and classes."""

import tracemalloc

import pytest
import torch
from tests.cases import CASES, CLASSES, Forward, named, watch
from tests.oracles import responses as oracle
from tests.oracles.vital_signs import places_of, shown
from torch import nn

import neurank as nr
from neurank.errors import DataError, ModelError
from neurank.observe import responses as room
from neurank.observe.responses import responses

HIDDEN = [case for case in CASES if any(case.reads.values())]
WHICH = {"pre": "given", "post": "read"}
EXACT = {torch.float64: 1e-12, torch.float32: 1e-6}


def found(observer, at="pre", names=None):
    space = observer.space
    return responses(
        names or space.hidden, observer.runner, space, observer.examples, at, observer.classes
    )


def read_once(places):
    """Whether units have one reader, so that a loop over readers counts nothing twice."""
    return len(places.read) == 1


@pytest.mark.parametrize("at", ["pre", "post"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", HIDDEN, ids=str)
def test_they_are_those_of_loops_over_classes_and_examples(case, dtype, at):
    observer = watch(case, dtype)
    model, batches = case.model(dtype).eval(), case.batches(dtype)
    seen = found(observer, at)
    for layer, places in places_of(case, model).items():
        if at == "post" and not read_once(places):
            continue
        wanted, counts = oracle.accumulated(model, places, batches, CLASSES, WHICH[at])
        mine = seen[layer]
        assert mine.examples.tolist() == counts
        scale = wanted.abs().max()
        assert float((mine.sums - wanted).abs().max() / scale) <= EXACT[dtype]
        (first, *_) = shown(model, places, batches[:1])[0]
        assert mine.places.tolist() == oracle.places_of(places, first, WHICH[at])


def test_a_result_with_two_readers_counts_once():
    case = named("branch")
    observer = watch(case)
    model = case.model().eval()
    inputs, targets = (torch.cat(parts) for parts in zip(*case.batches(), strict=True))
    with torch.no_grad():
        fork = torch.relu(model.stem(inputs)).sum(dim=(2, 3))
    wanted = torch.stack([fork[targets == label].sum(dim=0) for label in range(CLASSES)])
    torch.testing.assert_close(found(observer, "post")["stem"].sums, wanted)


def test_tied_layers_are_added_up():
    def forward(net, x):
        return net.out(torch.relu(net.one(x) + net.other(torch.relu(net.one(x)))))

    parts = {"one": nn.Linear(2, 3), "other": nn.Linear(3, 3), "out": nn.Linear(3, 2)}
    model = Forward(forward, **parts).double()
    inputs, labels = torch.rand(5, 2, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 0])
    ranking = nr.rank(model, [(inputs, labels)], nr.ClassResponse(), progress=False)
    with torch.no_grad():
        twice = model.one(inputs)  # it runs two times, and counts twice
        each = 2 * twice + model.other(torch.relu(twice))
    assert list(ranking) == ["one"]
    torch.testing.assert_close(ranking["one"].by_class[1], each[1:3].sum(dim=0))


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_pieces_of_a_batch_change_nothing(size, monkeypatch):
    observer = watch(named("lenet, flatten"))
    wanted = found(observer)
    monkeypatch.setattr(room, "_piece_size", lambda _runner, _bytes: size)
    for layer, mine in found(observer).items():
        torch.testing.assert_close(mine.sums, wanted[layer].sums, rtol=1e-13, atol=1e-13)
        assert torch.equal(mine.examples, wanted[layer].examples)


def test_squares_are_of_whole_responses():
    case = named("linear pair")
    observer = watch(case)
    model = case.model().eval()
    (layer,) = observer.space.hidden
    inputs, targets = (torch.cat(parts) for parts in zip(*case.batches(), strict=True))
    with torch.no_grad():
        given = model.get_submodule(layer)(inputs) ** 2
    wanted = torch.stack([given[targets == label].sum(dim=0) for label in range(CLASSES)])
    torch.testing.assert_close(found(observer)[layer].squares, wanted)


def test_memory_is_classes_times_units_whatever_the_examples():
    """A thousand classes and one example of each; nothing of the size of examples times units."""
    classes, width = 2000, 50
    model = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, classes))

    def data(passes):
        for _ in range(passes):
            for start in range(0, classes, 100):
                labels = torch.arange(start, start + 100)
                yield torch.rand(100, 3, generator=torch.Generator().manual_seed(start)), labels

    peaks = []
    for passes in (1, 4):
        batches = list(data(passes))
        tracemalloc.start()
        ranking = nr.rank(model, batches, nr.ClassResponse(), progress=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert ranking["0"].by_class.shape == (classes, width)
    assert peaks[1] < 1.5 * peaks[0]


def test_what_is_not_finite_is_refused_by_name():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        model[0].weight[1] = 1e308
    data = [(torch.full((2, 2), 9.0, dtype=torch.float64), torch.tensor([0, 1]))]
    with pytest.raises(ModelError, match="NaN or infinite"):
        nr.rank(model, data, nr.ClassResponse(), progress=False)


def test_labels_beyond_the_outputs_are_refused():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(DataError, match="label 7"):
        nr.rank(model, [(torch.rand(2, 2), torch.tensor([0, 7]))], nr.ClassResponse())
