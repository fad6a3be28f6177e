"""Specialists: chosen by one rule, cut by the one condense path, measured honestly."""

import copy
import math

import pytest
import torch
from torch import nn

import neurank as nr
from neurank.classes.choice import STEP, cross_fitted
from neurank.classes.quality import quality
from neurank.condense.heads import fit_head, relabelled
from neurank.condense.surgery import named_tensors
from neurank.errors import CondenseError, DataError, MethodError, PlanError

WHOLE = 4026


@pytest.fixture(scope="module")
def digits():
    return nr.data.load("digits", batch_size=50)


@pytest.fixture(scope="module")
def model(digits):
    made = nr.zoo.digits_net(seed=0)
    nr.fit(made, digits.train, digits.validation, epochs=10, progress=False)
    return made


def answers(model, data):
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        found = [(model(inputs), targets) for inputs, targets in data]
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def specialist(model, data, target=3, **options):
    return nr.specialize(model, data, target, progress=False, **options)


@pytest.mark.parametrize("scope", ["layer", "network"])
def test_theta_is_semantic_pruning_of_the_class(model, digits, scope):
    made = specialist(model, digits.validation, theta=0.25, scope=scope)
    responses = nr.rank(model, digits.validation, nr.ClassResponse(), progress=False)
    name = f"{'LWP' if scope == 'layer' else 'NWP'}-25"
    assert made.condensed.plan == nr.classes.select(responses, 3, name).plan()
    assert made.model.output.out_features == 10
    assert made.output == made.label == 3
    wanted = quality(*answers(made.model, digits.validation), 3)
    assert made.quality == wanted
    assert made.whole == quality(*answers(model, digits.validation), 3)


@pytest.mark.parametrize("label", [0, 1, 8])
def test_a_head_is_fitted_after_the_cut_and_folded_in(model, digits, label):
    """Label 1 too, which is also the number of the output that means the class."""
    made = specialist(model, digits.validation, label, theta=0.25, head=True)
    plain = specialist(model, digits.validation, label, theta=0.25)
    logits, targets = answers(plain.model, digits.validation)
    wanted = fit_head(logits, targets, label)(logits)
    found, _ = answers(made.model, digits.validation)
    assert found.shape == (300, 2)
    assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    own = (targets == label).to(torch.int64)
    assert made.quality.hits == quality(wanted, own, 1).hits
    assert made.quality.label == label
    assert made.quality.own == int(own.sum())
    assert made.output == 1
    assert made.measured(digits.validation) == made.quality
    assert made.report.parameters[1] == sum(it.numel() for it in made.model.parameters())


def test_quality_is_measured_where_the_user_says(model, digits):
    made = specialist(model, digits.validation, theta=0.25, head=True, test=digits.test)
    assert made.whole == quality(*answers(model, digits.test), 3)
    logits, targets = answers(made.model, digits.test)
    assert made.quality.hits == quality(logits, (targets == 3).long(), 1).hits
    assert made.quality.own == int((targets == 3).sum())


@pytest.mark.parametrize("head", [False, True])
def test_budgets_hold(model, digits, head):
    made = specialist(model, digits.validation, max_params=1500, max_macs=12_000, head=head)
    assert made.report.parameters[1] <= 1500
    assert made.report.multiply_adds[1] <= 12_000
    assert made.condensed.check.max_error <= made.condensed.check.tolerance


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("removal", ["zero", "mean"])
def test_a_search_ends_at_a_network_that_holds(model, digits, head, removal):
    data = digits.validation
    made = specialist(model, data, 0, max_drop=0.1, head=head, removal=removal)
    least = made.whole.f1 - 0.1
    sizes = {it.parameters: it.quality.f1 for it in made.tried}
    assert len(made.tried) <= math.ceil(math.log2(41))
    tried_and_held = [size for size, f1 in sizes.items() if f1 >= least]
    assert tried_and_held, sizes
    kept = min(tried_and_held)
    assert kept < 0.9 * WHOLE
    # A head that is folded in takes eight of ten rows of the output with it.
    rows = 8 * (made.model.output.in_features + 1) if head else 0
    assert made.report.parameters[1] == pytest.approx(kept - rows, abs=40)
    # One step further was tried, and did not hold.
    assert any(size <= kept and f1 < least for size, f1 in sizes.items()) or kept < WHOLE * STEP**39


def test_what_is_tried_is_what_the_network_is_then(model, digits):
    """Without a head, the quality noted while searching is that of the condensed network."""
    made = specialist(model, digits.validation, 0, max_drop=0.1)
    by_size = {it.parameters: it.quality for it in made.tried}
    found, noted = made.quality, by_size[made.report.parameters[1]]
    assert (found.hits, found.false_alarms) == (noted.hits, noted.false_alarms)
    assert found.auroc == pytest.approx(noted.auroc, abs=1e-3)


def test_heads_are_tried_on_examples_that_they_were_not_fitted_to():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 60, generator=draw)  # of no use
    targets = torch.randint(0, 5, (400,), generator=draw)
    head = fit_head(logits, targets, 2)
    own = (targets == 2).long()
    seen = quality(head(logits), own, 1).auroc
    unseen = cross_fitted(logits, targets, 2).auroc
    assert seen > 0.7
    assert unseen < 0.6


def test_a_specialist_is_saved_and_loaded_by_the_original_factory(model, digits, tmp_path):
    for head in (False, True):
        made = specialist(model, digits.validation, max_params=1500, head=head)
        made.save(tmp_path / "one.safetensors")
        again = nr.load(tmp_path / "one.safetensors", nr.zoo.digits_net)
        assert torch.equal(*(answers(it, digits.test)[0] for it in (made.model, again.model)))


def test_it_is_retrained_on_two_labels(model, digits):
    made = specialist(model, digits.validation, max_params=800, head=True)
    before = made.measured(digits.validation)
    nr.fit(
        made.model,
        made.examples(digits.train),
        made.examples(digits.validation),
        epochs=6,
        lr=0.02,
        progress=False,
    )
    assert made.measured(digits.validation).f1 > before.f1
    assert made.quality == before  # what it was when it was made
    plain = specialist(model, digits.validation, max_params=800)
    assert plain.examples(digits.train) is digits.train


def test_rankings_of_the_users_own(model, digits):
    shapley = nr.rank(model, digits.validation.first(50), nr.PermutationShapley(), progress=False)
    made = specialist(model, digits.validation, ranking=shapley, theta=0.5)
    wanted = nr.classes.select(shapley, 3, "LWP-50").plan()
    assert made.condensed.plan == wanted
    norms = nr.rank(model, digits.validation, nr.WeightNorm(1), progress=False)
    made = specialist(model, digits.validation, ranking=norms, theta=0.5)
    assert made.condensed.plan == nr.plan(norms, ratio=0.5)


def test_scores_are_for_the_decision_whether_it_is_the_class(model, digits):
    """The method sees the two-output network and two labels."""
    data = digits.validation
    logits, targets = answers(model, data)
    deciding = nr.classes.specialist.with_head(model, fit_head(logits, targets, 3), data)
    scores = nr.rank(deciding, relabelled(data, 3), nr.Taylor(), progress=False)
    made = specialist(model, data, method=nr.Taylor(), theta=0.5)
    assert made.condensed.plan == nr.plan(scores, ratio=0.5)
    assert made.condensed.plan != nr.plan(
        nr.rank(model, data, nr.Taylor(), progress=False), ratio=0.5
    )


class Rectified(nn.Module):
    """Its outputs are behind a ReLU, into which no head can be folded."""

    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(64, 12), nn.Linear(12, 10)

    def forward(self, x):
        return torch.relu(self.out(torch.relu(self.fc(x.flatten(1)))))


def test_outputs_behind_a_nonlinearity(digits):
    model = Rectified()
    made = specialist(model, digits.validation, max_params=500)
    own = nr.rank(
        model, digits.validation, nr.MeanReplacementSaliency(at="post"), progress=False
    ).of_class(3)
    wanted = nr.plan(own, max_params=500, model=model, data=digits.validation, progress=False)
    assert made.condensed.plan == wanted
    with pytest.raises(CondenseError, match="relu"):
        specialist(model, digits.validation, max_params=500, head=True)


def test_the_model_comes_back_as_it_was(model, digits):
    model.train()
    before = {name: it.clone() for name, it in named_tensors(model).items()}
    state = torch.get_rng_state()
    specialist(model, digits.validation, head=True, max_drop=0.2)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(it, before[name]) for name, it in named_tensors(model).items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(it._forward_hooks or it._forward_pre_hooks for it in model.modules())


def test_classes_have_names(model, digits):
    assert specialist(model, digits.validation, "3", theta=0.2).label == 3


@pytest.mark.parametrize(
    ("target", "error", "word"),
    [
        ("cat", DataError, "no class 'cat'"),
        (-1, DataError, "target=-1"),
        (True, DataError, "target=True"),
        (10, DataError, "10"),
    ],
)
def test_classes_that_are_not_there(model, digits, target, error, word):
    with pytest.raises(error, match=word):
        specialist(model, digits.validation, target, theta=0.2)


def test_a_class_without_examples_and_one_example(model, digits):
    rows = torch.nonzero(digits.validation.targets != 3)[:, 0]
    with pytest.raises(DataError, match="class 3 has no examples"):
        specialist(model, digits.validation.subset(rows), theta=0.2)
    one = torch.nonzero(digits.validation.targets == 3)[:1, 0]
    made = specialist(model, digits.validation.subset(torch.cat([rows[:40], one])), theta=0.2)
    assert made.quality.own == 1
    only = specialist(model, digits.validation.subset(one), theta=0.2)
    assert only.quality.others == 0
    assert math.isnan(only.quality.false_positive_rate)


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"theta": 0.2, "max_params": 99}, MethodError, "one can hold"),
        ({"theta": 0.2, "max_drop": 0.1}, MethodError, "one can hold"),
        ({"theta": 1.5}, MethodError, "theta=1.5"),
        ({"max_drop": 1.0}, MethodError, "max_drop=1.0"),
        ({"theta": 0.99, "scope": "network"}, PlanError, "leaves no unit of layer"),
        ({"max_params": 3}, PlanError, "cannot be met"),
        ({"theta": 0.2, "scope": "net"}, MethodError, "scope='net'"),
        ({"theta": 0.2, "removal": "half"}, MethodError, "removal='half'"),
    ],
)
def test_what_cannot_be_done_is_refused(model, digits, options, error, word):
    with pytest.raises(error, match=word):
        specialist(model, digits.validation, **options)


def test_nobody_says_how_much(model, digits):
    """Then F1 may fall by one point."""
    made = specialist(model, digits.validation, 0)
    held = [it for it in made.tried if it.quality.f1 >= made.whole.f1 - 0.01]
    size = min((it.parameters for it in held), default=WHOLE)
    assert made.report.parameters[1] == size


def test_it_prints_costs_and_quality(model, digits):
    text = str(specialist(model, digits.validation, theta=0.3))
    assert "parameters" in text
    assert "false positive rate" in text
    assert "condensed = masked" in text
