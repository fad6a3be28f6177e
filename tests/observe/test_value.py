import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.oracles.game import worth

import neurank as nr
from neurank.errors import MethodError, ModelError
from neurank.observe.value import Value, counted, evaluate, is_accuracy, value_name

logits = st.integers(1, 5).flatmap(
    lambda classes: st.lists(
        st.tuples(
            st.lists(st.integers(-3, 3), min_size=classes, max_size=classes),
            st.integers(0, classes - 1),
        ),
        min_size=1,
        max_size=5,
    )
)
BY_NAME = {
    "accuracy": nr.Accuracy(),
    "negative loss": nr.NegativeLoss(),
    "margin": nr.Margin(),
}


@given(logits, st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_values_are_their_definitions_ties_included(rows, dtype):
    outputs = torch.tensor([row for row, _ in rows], dtype=dtype)
    targets = torch.tensor([target for _, target in rows])
    for name, value in BY_NAME.items():
        if name == "margin" and outputs.shape[1] == 1:
            continue  # there is no other output
        found = value(outputs, targets)
        assert found.dtype == torch.float64
        assert found.shape == targets.shape
        assert float(found.mean()) == pytest.approx(worth(name, outputs, targets), abs=1e-12)


def test_accuracy_breaks_ties_by_the_lowest_class_in_wide_outputs_too():
    for width in (2, 7, 64, 1000, 4096):
        outputs = torch.zeros(3, width)
        outputs[1, width // 2 :] = 1
        outputs[2, -1] = 1
        targets = torch.tensor([0, width // 2, width - 1])
        assert nr.Accuracy()(outputs, targets).tolist() == [1, 1, 1]


def test_recall_counts_its_class_and_the_others_count_all():
    targets = torch.tensor([0, 2, 1, 2])
    assert counted(nr.Recall(2), targets).tolist() == [False, True, False, True]
    for value in (*BY_NAME.values(), lambda outputs, _: outputs[:, 0]):
        assert counted(value, targets).all()


@pytest.mark.parametrize("label", [-1, 1.0, "cat", None])
def test_recall_is_of_a_class_index(label):
    with pytest.raises(MethodError, match="class index from 0 on"):
        nr.Recall(label)


def test_only_accuracies_depend_on_the_winner_alone():
    assert is_accuracy(nr.Accuracy())
    assert is_accuracy(nr.Recall(1))
    assert not is_accuracy(nr.Margin())
    assert not is_accuracy(nr.NegativeLoss())


def test_names_for_the_records():
    def half(outputs, targets):
        return nr.Margin()(outputs, targets) / 2

    assert value_name(nr.Recall(3)) == "Recall(label=3)"
    assert value_name(half).endswith("half")
    assert isinstance(half, Value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_outputs_that_are_not_finite_are_refused_where_they_are(bad):
    outputs = torch.tensor([[1.0, bad]])
    with pytest.raises(ModelError, match=r"outputs are NaN or infinite here"):
        evaluate(nr.Accuracy(), outputs, torch.tensor([0]), "here")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (lambda outputs, _: outputs.mean(), r"returned \(\).*do not average"),
        (lambda outputs, _: outputs, r"returned \(2, 3\)"),
        (lambda outputs, _: outputs[:1, 0], r"returned \(1,\)"),
        (lambda *_: 0.5, "returned float"),
    ],
)
def test_values_must_give_one_number_per_example(value, reason):
    with pytest.raises(MethodError, match=reason):
        evaluate(value, torch.zeros(2, 3), torch.tensor([0, 1]), "here")


def test_values_that_are_not_finite_are_refused_by_name():
    with pytest.raises(ModelError, match=r"value .*<lambda> is NaN or infinite here"):
        evaluate(lambda outputs, _: outputs[:, 0] / 0, torch.zeros(2, 3), torch.tensor([0, 1]),
                 "here")  # fmt: skip


def test_values_may_be_of_any_number_type():
    found = evaluate(lambda outputs, targets: outputs.argmax(1) == targets, torch.zeros(2, 3),
                     torch.tensor([0, 1]), "here")  # fmt: skip
    assert found.dtype == torch.float64
    assert found.tolist() == [1, 0]


def test_the_margin_of_a_single_output_is_infinite_and_so_refused():
    with pytest.raises(ModelError, match=r"Margin\(\) is NaN or infinite"):
        evaluate(nr.Margin(), torch.zeros(2, 1), torch.tensor([0, 0]), "here")
