"""Class responses as a ranking: the paper's sums, means, classes without examples, one example."""

import pytest
import torch
from tests.cases import CLASSES, named
from tests.oracles import responses as oracle
from tests.oracles.vital_signs import places_of

import neurank as nr
from neurank.errors import MethodError, ModelError, RankingError

CASE = named("lenet, flatten")


def ranked(method=None, case=CASE, **options):
    method = method or nr.ClassResponse()
    return nr.rank(case.model(), case.batches(), method, progress=False, **options)


def by_hand(layer, which="given"):
    model = CASE.model().eval()
    places = places_of(CASE, model)[layer]
    return oracle.accumulated(model, places, CASE.batches(), CLASSES, which)


@pytest.mark.parametrize("layer", [name for name, readers in CASE.reads.items() if readers])
def test_sums_and_means_by_class_and_of_all(layer):
    sums, counts = by_hand(layer)
    summed, mean = ranked(), ranked(nr.ClassResponse(statistic="mean"))
    torch.testing.assert_close(summed[layer].by_class, sums)
    torch.testing.assert_close(summed[layer].scores, sums.sum(dim=0))
    # All units of a layer have maps of one size, so means are in proportion to sums.
    ratio = mean[layer].by_class / summed[layer].by_class
    for label, count in enumerate(counts):
        assert float(ratio[label].max() - ratio[label].min()) < 1e-12
        torch.testing.assert_close(ratio[label] * count, ratio[0] * counts[0])
    assert summed[layer].status == "computed"


def test_the_mean_is_per_example_and_place():
    """Of a map of 2 x 3 places that is 5 everywhere, the mean is 5 and the sum 30 per example."""
    conv = torch.nn.Conv2d(1, 2, 1)
    torch.nn.init.zeros_(conv.weight)
    torch.nn.init.constant_(conv.bias, 5.0)
    model = torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(12, 2))
    data = [(torch.rand(3, 1, 2, 3), torch.tensor([0, 1, 1]))]
    mean = nr.rank(model, data, nr.ClassResponse(statistic="mean"), progress=False)["0"]
    total = nr.rank(model, data, nr.ClassResponse(), progress=False)["0"]
    assert mean.scores.tolist() == [5.0, 5.0]
    assert mean.by_class.tolist() == [[5.0, 5.0], [5.0, 5.0]]
    assert total.by_class.tolist() == [[30.0, 30.0], [60.0, 60.0]]
    assert total.scores.tolist() == [90.0, 90.0]
    assert mean.data_stderr.tolist() == [0.0, 0.0]


def test_the_error_is_that_of_the_choice_of_examples():
    data = [(torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([0, 0, 1]))]
    model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 2))
    torch.nn.init.ones_(model[0].weight)
    one = nr.rank(model, data, nr.ClassResponse(statistic="mean"), progress=False)["0"]
    wanted = torch.tensor([1.0, 2.0, 6.0]).std() / 3**0.5
    assert float(one.data_stderr) == pytest.approx(float(wanted), rel=1e-6)
    total = nr.rank(model, data, nr.ClassResponse(), progress=False)["0"]
    assert float(total.data_stderr) == pytest.approx(3 * float(wanted), rel=1e-6)


def test_a_class_without_examples_is_undefined_never_0():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 4))
    data = [(torch.rand(5, 2), torch.tensor([0, 1, 0, 3, 3]))]
    ranking = nr.rank(model, data, nr.ClassResponse(), progress=False)
    assert ranking["0"].by_class[2].isnan().all()
    assert not ranking["0"].by_class[[0, 1, 3]].isnan().any()
    assert ranking.of_class(2)["0"].status == "undefined"
    with pytest.raises(RankingError, match="undefined"):
        ranking.of_class(2).order("0")
    recall = nr.rank(model, data, nr.ClassResponse(), value=nr.Recall(2), progress=False)
    assert recall["0"].status == "undefined"


def test_one_example_is_enough():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    data = [(torch.rand(1, 2), torch.tensor([1]))]
    ranking = nr.rank(model, data, nr.ClassResponse(), progress=False)
    with torch.no_grad():
        wanted = model[0](data[0][0])[0].double()
    torch.testing.assert_close(ranking["0"].by_class[1], wanted)
    assert ranking["0"].data_stderr.isnan().all()


def test_the_recall_of_a_class_picks_its_row():
    everything, one = ranked(), ranked(value=nr.Recall(1))
    for layer in everything:
        torch.testing.assert_close(one[layer].scores, everything[layer].by_class[1])
        assert everything.of_class(1).order(layer) == one.order(layer)


def test_before_and_behind_the_nonlinearity_differ_and_behind_it_is_not_negative():
    pre, post = ranked(), ranked(nr.ClassResponse(at="post"))
    assert any(bool((pre[layer].by_class < 0).any()) for layer in pre)
    first = next(iter(post))
    assert bool((post[first].by_class >= 0).all())


@pytest.mark.parametrize(
    ("options", "word"), [({"at": "behind"}, "at='behind'"), ({"statistic": "max"}, "statistic")]
)
def test_unknown_words_are_refused(options, word):
    with pytest.raises(MethodError, match=word):
        nr.ClassResponse(**options)


def test_a_model_that_cannot_be_traced_is_refused():
    class Branch(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.out = torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)

        def forward(self, x):
            return self.out(self.fc(x) if bool(x.sum() > 0) else -self.fc(x))

    data = [(torch.rand(4, 2), torch.tensor([0, 1, 0, 1]))]
    with pytest.raises(ModelError, match="traced"):
        nr.rank(Branch(), data, nr.ClassResponse(), removal="parameters", progress=False)
