"""Rankings that are killed and resumed: `python -m tests.killed_runs RUNS FOLDER` prints a report.

The runs are forked, and a process can only be forked safely before it has started threads that
the child would need. So this is a program of its own, on one thread, not a part of a test session.
"""

import hashlib
import itertools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from tests.killing import MOMENTS, Ended, run_and_kill

import neurank as nr
from neurank.journal import Journal, open_journal
from neurank.observe import observer
from neurank.rankers import rank

WIDTHS = (4, 6, 10, 8)
EXAMPLES, BATCH = 72, 8
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "NUMBA_THREADING_LAYER": "workqueue",  # which starts anew in a forked process
}
"""The environment in which the program must be started."""


@dataclass(frozen=True)
class Telling:
    """A journal that tells of the chunks that it finds and of those that it has taken."""

    journal: Journal
    tell: Callable[[str], None]

    @property
    def reused(self):
        return self.journal.reused

    def get(self, key):
        return self.journal.get(key)

    def keys(self):
        return self.journal.keys()

    def append(self, key, arrays):
        self.tell(f"begun {key}")
        self.journal.append(key, arrays)
        self.tell(f"taken {key}")


def telling(tell):
    """Stand in for `open_journal`."""

    @contextmanager
    def opened(path, fingerprint):
        with open_journal(path, fingerprint) as journal:
            held = journal.keys()
            for key in held:
                tell(f"found {key}")
            yield Telling(journal, tell)

    return opened


def ranking_into(path: Path) -> Callable[[Callable[[str], None]], None]:
    """Rank several layers and tell the digest of the result."""
    torch.set_num_threads(1)
    model = nr.zoo.digits_net(*WIDTHS, seed=0)
    held = nr.data.load("digits").validation.first(EXAMPLES)
    inputs, targets = (torch.cat(parts) for parts in zip(*held, strict=True))
    data = list(zip(inputs.split(BATCH), targets.split(BATCH), strict=True))
    method = nr.PermutationShapley(passes=2)

    def work(tell):
        with mock.patch.object(rank, "open_journal", telling(tell)):
            ranking = nr.rank(model, data, method, journal=path, progress=False)
        tell(f"done {digest(ranking)}")

    return work


def digest(ranking: nr.Ranking) -> str:
    fields = ("scores", "stderr", "data_stderr", "freedom", "counts", "by_class", "by_class_stderr")
    found = hashlib.sha256()
    for layer in ranking.layers.values():
        for field in fields:
            found.update(getattr(layer, field).numpy().tobytes())
    return found.hexdigest()


def said(ended: Ended, word: str) -> list[str]:
    return [line.removeprefix(f"{word} ") for line in ended.told if line.startswith(f"{word} ")]


def struck(ended: Ended, kill) -> str:
    """Say where a kill struck: at a call, or, at an instant, by what the process had told."""
    if "moment" in kill:
        return f"{kill['moment']} a call"
    last = ended.told[-1].split()[0] if ended.told else ""
    places = {
        "found": "before the first chunk",
        "begun": "while a chunk was written",
        "taken": "between chunks",
        "done": "after the end",
    }
    return places.get(last, "before the journal")


def plans(runs: int, calls: int, seconds: float):
    """Yield how each run is killed, endlessly: at every call, then at instants; some twice."""
    draw = random.Random(0)

    def instant():
        return {"after": draw.uniform(0, 0.9 * seconds)}

    at_calls = [
        {"at_call": number, "moment": moment}
        for number, moment in itertools.product(range(1, calls + 1), MOMENTS)
    ]
    draw.shuffle(at_calls)
    at_calls = at_calls[: runs // 2]
    for number in itertools.count():
        first = at_calls[number] if number < len(at_calls) else instant()
        yield [first, instant()] if draw.random() < 0.25 else [first]


def resumed(work, plan, wanted: str) -> Iterator[str]:
    """Kill a run as planned and resume it to its end; yield what is to be counted."""
    acknowledged: set[str] = set()
    for kill in plan:
        ended = run_and_kill(work, **kill)
        yield from ("kills", struck(ended, kill)) if ended.killed else ("ended before the kill",)
        acknowledged.update(said(ended, "taken"))
    ended = run_and_kill(work)
    found, computed = set(said(ended, "found")), set(said(ended, "taken"))
    yield "runs"
    yield from ["identical"] * (said(ended, "done") == [wanted])
    yield from ["acknowledged"] * len(acknowledged)
    yield from ["lost"] * len(acknowledged - found)
    yield from ["reused"] * len(found)
    yield from ["computed again"] * len(found & computed)


def main(runs: int, folder: Path) -> None:
    ranking_into(folder / "first")(lambda _: None)  # compile before the forks
    model = nr.zoo.digits_net(*WIDTHS, seed=0).eval()
    graph = observer.trace(model, torch.zeros(BATCH, 1, 8, 8))
    report: Counter[str] = Counter()
    with mock.patch.object(observer, "trace", return_value=graph):  # the same for all, and slow
        wholes, seconds = [], []
        for number in range(5):
            started = time.perf_counter()
            wholes.append(run_and_kill(ranking_into(folder / f"whole {number}")))
            seconds.append(time.perf_counter() - started)
        whole = wholes[0]
        (wanted,), chunks = said(whole, "done"), len(said(whole, "taken"))
        # A journal begins with 3 calls, and takes a chunk with 2.
        for number, plan in enumerate(plans(runs, 3 + 2 * chunks, min(seconds))):
            report.update(resumed(ranking_into(folder / str(number)), plan, wanted))
            # On a busy machine some runs end before their kill.
            if min(report["runs"], report["kills"]) >= runs:
                break
    print(json.dumps({**report, "chunks": chunks}))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
