import contextlib
import io

import pytest

from neurank.progress import reporting, track


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def on_terminal(monkeypatch):
    """Run a function with a terminal as standard error; give its result and what was seen."""
    monkeypatch.setenv("TERM", "xterm")

    def run(function):
        stream = Terminal()
        # Within the test, for pytest puts its own stream back when a test begins.
        with contextlib.redirect_stderr(stream):
            return function(), stream.getvalue()

    return run


@pytest.mark.parametrize("show", [True, False])
def test_the_items_come_unchanged(on_terminal, show):
    items = [object(), object()]
    assert on_terminal(lambda: list(track(items, label="things", show=show)))[0] == items


def test_a_terminal_sees_the_label_and_the_count(on_terminal):
    _, seen = on_terminal(lambda: list(track(range(3), label="fetching")))
    assert "fetching" in seen
    assert "/3" in seen


def test_the_total_of_a_generator_can_be_told(on_terminal):
    _, seen = on_terminal(lambda: list(track(iter("ab"), label="letters", total=2)))
    assert "/2" in seen


def test_show_false_is_quiet_on_a_terminal(on_terminal):
    _, seen = on_terminal(lambda: list(track(range(3), label="fetching", show=False)))
    assert seen == ""


def test_a_pipe_sees_nothing(capsys):
    list(track(range(3), label="fetching"))
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


def test_a_label_is_no_markup(on_terminal):
    _, seen = on_terminal(lambda: list(track(range(1), label="[red]layer[/nonsense]")))
    assert "[red]layer[/nonsense]" in seen


def test_bars_can_be_nested(on_terminal):
    pairs, _ = on_terminal(
        lambda: [(i, j) for i in track("ab", label="outer") for j in track("cd", label="inner")]
    )
    assert pairs == [("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")]


def test_nothing_is_taken_ahead_of_its_turn(on_terminal):
    taken = []

    def begin():
        items = track((taken.append(i) or i for i in range(5)), label="counting")
        next(items)
        items.close()

    on_terminal(begin)
    assert taken == [0]


def test_an_error_in_the_loop_passes_through(on_terminal):
    def failing():
        yield 1
        raise RuntimeError("the loader broke")

    with pytest.raises(RuntimeError, match="the loader broke"):
        on_terminal(lambda: list(track(failing(), label="loading")))
    assert on_terminal(lambda: list(track("a", label="again")))[0] == ["a"]


def steps(texts, total=3, **options):
    def run():
        with reporting("ranking [b]fc1[/b]", total, **options) as step:
            for text in texts:
                step(text)

    return run


def test_steps_are_counted_and_the_last_text_is_shown(on_terminal):
    _, seen = on_terminal(steps(["4: 0.1 ± 0.05", "7: 0.2 ± [0.01]"]))
    assert "2/3" in seen
    assert "ranking [b]fc1[/b]  7: 0.2 ± [0.01]" in seen


def test_a_step_without_text_shows_the_label_alone(on_terminal):
    _, seen = on_terminal(steps([""]))
    assert "ranking [b]fc1[/b] " in seen
    assert "1/3" in seen


@pytest.mark.parametrize("show", [True, False])
def test_steps_are_quiet_without_a_terminal_or_when_told(on_terminal, capsys, show):
    if show:
        steps(["a"])()
        captured = capsys.readouterr()
        assert captured.err == captured.out == ""
    else:
        assert on_terminal(steps(["a"], show=False))[1] == ""


def test_an_error_between_steps_passes_through_and_ends_the_bar(on_terminal):
    def failing():
        with reporting("ranking", 2) as step:
            step("")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        on_terminal(failing)
    assert "1/3" in on_terminal(steps(["again"]))[1]  # a bar that lives on would refuse the next
