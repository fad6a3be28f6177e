from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cases import named, watch

import neurank as nr
from neurank.observe.game import SuffixGame
from neurank.observe.outputs import OutputGame
from neurank.rankers.exact_shapley import shapley_of_table


def game_of(on, off, targets):
    """The game of outputs that are `on` per example and `off` whatever the example."""
    template = next(watch(named("linear pair")).games("fc1"))
    on, off = torch.tensor(on).double(), torch.tensor(off).double()
    return OutputGame(
        **{name: getattr(template, name) for name in ("layer", "split", "runner", "side")},
        numbers=torch.arange(len(on)),
        value=nr.Accuracy(),
        targets=torch.tensor(targets),
        active=on != off,
        on=on[:, :, None],
        off=off[:, None],
        read_shape=(on.shape[1],),
    )


def from_the_power_set(game):
    plain = SuffixGame(**{name: getattr(game, name) for name in SuffixGame.__dataclass_fields__})
    shapley, ends = np.zeros((game.examples, game.units)), np.zeros((game.examples, 2))
    for row in range(game.examples):
        values = torch.cat(list(plain.power_set(row))).numpy()
        shapley[row, game.active[row].numpy()] = shapley_of_table(values)
        ends[row] = values[[0, -1]]
    return shapley, ends


outputs = st.integers(1, 6).flatmap(
    lambda classes: st.tuples(
        st.lists(
            st.lists(st.integers(-2, 2), min_size=classes, max_size=classes),
            min_size=1, max_size=4,
        ),
        st.one_of(
            st.just([0] * classes),
            st.lists(st.integers(-1, 1), min_size=classes, max_size=classes),
        ),
        st.lists(st.integers(0, classes - 1), min_size=4, max_size=4),
    )
)  # fmt: skip


@settings(deadline=None, max_examples=100)
@given(outputs)
def test_the_closed_form_is_the_power_set_ties_included(drawn):
    on, off, targets = drawn
    game = game_of(on, off, targets[: len(on)])
    found, wanted = game.exact(), from_the_power_set(game)
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-12)
    np.testing.assert_array_equal(found[1], wanted[1])


def test_a_hundred_outputs_are_exact_too():
    draw = np.random.default_rng(0)
    game = game_of(draw.normal(size=(5, 100)).tolist(), [0.0] * 100, [3, 7, 7, 99, 0])
    shapley, ends = game.exact()
    np.testing.assert_allclose(shapley.sum(axis=1), ends[:, 1] - ends[:, 0], atol=1e-12)
    assert game.exact_coalitions == 10


def test_no_examples_at_all():
    game = replace(game_of([[1, 2]], [0, 0], [0]), targets=torch.zeros(0, dtype=torch.int64))
    empty = replace(game, on=game.on[:0], active=game.active[:0], numbers=game.numbers[:0])
    shapley, ends = empty.exact()
    assert shapley.shape == (0, 2)
    assert ends.shape == (0, 2)
