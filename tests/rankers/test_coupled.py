"""Rankings of layers whose units are tied: residual sums, heads, groups, one weight many times."""

from dataclasses import dataclass, replace
from itertools import combinations

import pytest
import torch
from tests.architectures import architecture
from tests.cases import look
from tests.condense.zoo import batches, watched
from tests.oracles.shapley import by_subsets

import neurank as nr
from neurank.condense.verify import masked_logits
from neurank.observe.removal import off_constants

NARROW = [
    ("vit-fused-attention", "blocks.1.attn.qkv"), ("swin", "stage1.1.attn.qkv"),
    ("group-norm", "3.conv1"), ("alexnet-groups", "features.0"), ("densenet", "block2.0.conv2"),
    ("text-cnn", "convs.0"), ("super-resolution", "up.0"), ("shufflenet-v2", "1.right.0.0"),
]  # fmt: skip


@dataclass(frozen=True)
class Coalition:
    """What `masked_logits` wants to know of a plan, which may keep nothing here."""

    keep: dict
    width: int

    def removed(self, name):
        return [unit for unit in range(self.width) if unit not in self.keep[name]]


class Game:
    """v(C): the mean value of the masked network, run as the check of condensing runs it."""

    def __init__(self, observer, layer):
        self.observer, self.layer = observer, layer
        chosen = (observer.space[layer],)
        self.off = off_constants(observer.removal, chosen, observer.runner, observer.examples)
        self.known = {}

    def __call__(self, members):
        if members not in self.known:
            self.known[members] = self._value(members)
        return self.known[members]

    def _value(self, members):
        observer = self.observer
        plan = Coalition({self.layer: sorted(members)}, observer.width(self.layer))
        values = [
            observer.value(
                masked_logits(plan, observer.space, self.off, observer.runner, inputs), targets
            )
            for inputs, targets in observer.examples
        ]
        return float(torch.cat(values).double().mean())


@pytest.mark.parametrize("removal", ["zero", "mean"])
@pytest.mark.parametrize(("name", "layer"), NARROW)
def test_exact_values_are_those_of_the_masked_networks(name, layer, removal):
    value = squares if architecture(name).classes is None else nr.NegativeLoss()
    observer = replace(watched(name), removal=removal, value=value)
    game = Game(observer, layer)
    width = observer.width(layer)
    found = nr.ExactShapley().score(observer, layer)
    wanted = by_subsets(game, width)
    assert found.ranking.scores.tolist() == pytest.approx(wanted, abs=1e-12)
    assert found.record["value_all"] == pytest.approx(game(frozenset(range(width))), abs=1e-12)
    assert found.record["value_none"] == pytest.approx(game(frozenset()), abs=1e-12)
    assert len({round(score, 9) for score in wanted}) > 1


def squares(outputs, _):
    """A value of networks without classes."""
    return -outputs.flatten(1).square().mean(dim=1)


@pytest.mark.parametrize(("name", "layer"), NARROW[:2])
def test_tables_hold_the_masked_networks(name, layer):
    observer = replace(watched(name), removal="mean")  # and its value is the accuracy
    table = nr.value_table(observer.model, batches(name), layer, removal="mean", progress=False)
    game = Game(observer, layer)
    width = observer.width(layer)
    for size in range(width + 1):
        for members in combinations(range(width), size):
            assert table.value(members) == pytest.approx(game(frozenset(members)), abs=1e-12)


COARSE = ("resnet-basic", "vit-fused-attention", "swin")


@pytest.mark.parametrize("name", COARSE)
@pytest.mark.parametrize(
    "method",
    [nr.PermutationShapley(), nr.ImportanceSwitch(epochs=2), nr.WeightNorm(), nr.RandomScore()],
    ids=lambda method: type(method).__name__,
)
def test_every_layer_can_be_ranked(name, method):
    model = architecture(name).model()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    ranking = nr.rank(model, batches(name), method, progress=False)
    space = watched(name).space
    assert tuple(ranking.layers) == space.hidden
    for layer in space.hidden:
        scores = ranking[layer].scores
        assert scores.shape == (space[layer].width,)
        assert scores.isfinite().all()
        assert len(scores.unique()) > 1
    if isinstance(method, nr.ImportanceSwitch):
        assert all(abs(ranking[layer].scores.sum() - 1) < 1e-6 for layer in space.hidden)
    if isinstance(method, nr.PermutationShapley):
        for layer, notes in ranking.provenance["by_layer"].items():
            gain = notes["value_all"] - notes["value_none"]
            assert float(ranking[layer].scores.sum()) == pytest.approx(gain, abs=1e-12)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert model.training


@pytest.mark.parametrize(("tied", "combine"), [
    ("mean", lambda norms: norms.mean(0)), ("sum", lambda norms: norms.sum(0)),
    ("max", lambda norms: norms.amax(0)),
])  # fmt: skip
def test_norms_of_tied_rows_are_combined(tied, combine):
    observer = watched("resnet-basic")
    weights = dict(observer.model.named_parameters())
    rows = [weights[f"{it}.weight"] for it in ("stem.0", "blocks.0.conv2", "blocks.1.conv2")]
    norms = torch.stack([weight.detach().flatten(1).abs().sum(1) for weight in rows])
    found = nr.WeightNorm(tied=tied).score(observer, "stem.0").ranking.scores
    torch.testing.assert_close(found, combine(norms))


def test_norms_of_a_head_are_those_of_its_queries_keys_and_values():
    observer = watched("vit-fused-attention")
    weight = observer.model.get_parameter("blocks.0.attn.qkv.weight").detach()
    by_head = weight.reshape(3, 3, 4, 12).square().sum(3).sqrt()  # (q k v, heads, features)
    found = nr.WeightNorm(2, tied="max").score(observer, "blocks.0.attn.qkv").ranking.scores
    torch.testing.assert_close(found, by_head.amax((0, 2)))


def test_scores_follow_units_to_other_places():
    """The cell's units in another order, in all four tensors that hold them."""
    order = torch.tensor([3, 0, 9, 1, 7, 2, 8, 5, 4, 6])
    one = architecture("unrolled-cell")
    turned = one.model()
    with torch.no_grad():
        turned.input.weight.copy_(turned.input.weight[order])
        turned.input.bias.copy_(turned.input.bias[order])
        turned.state.weight.copy_(turned.state.weight[order][:, order])
        turned.start.copy_(turned.start[order])
        turned.out.weight.copy_(turned.out.weight[:, order])
    data = batches("unrolled-cell")
    for removal in ("zero", "mean"):
        plain, other = (
            nr.ExactShapley().score(
                look(model, data, value=nr.NegativeLoss(), removal=removal), "input"
            )
            for model in (one.model(), turned)
        )
        torch.testing.assert_close(
            other.ranking.scores, plain.ranking.scores[order], rtol=0, atol=1e-12
        )
