"""Error against time: points, the time to a target, ratios with their spread."""

import math
import statistics
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Point:
    """One run of one estimator.

    Attributes
    ----------
    seed : of the estimator.
    coalitions : how many values it asked for, or passes for neurank.
    seconds : wall clock.
    rmse : root mean square over the units of estimate minus truth.
    """

    seed: int
    coalitions: int
    seconds: float
    rmse: float


@dataclass(frozen=True)
class Reached:
    """When a run of points first had an error of at most the target.

    Attributes
    ----------
    seconds : interpolated between the two points around it, as straight lines in log and log.
    how : "measured"; "first" if the cheapest run is already as good; "extrapolated" by the law
        that the error falls as one over the root of time, where no run is good enough.
    """

    seconds: float
    how: str


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of repetitions."""

    median: float
    lowest: float
    highest: float


def spread(numbers):
    """Summarise repetitions."""
    return Spread(statistics.median(numbers), min(numbers), max(numbers))


def rmse(scores, truth):
    """Root mean square difference over the units."""
    return float(np.sqrt(np.mean((np.asarray(scores) - np.asarray(truth)) ** 2)))


def time_to(points, target):
    """Say when the points of one seed, in order of their cost, first reach the target.

    >>> line = [Point(0, 10, 1.0, 0.04), Point(0, 40, 4.0, 0.02)]
    >>> time_to(line, 0.04).how, round(time_to(line, 0.01).seconds, 6)
    ('first', 16.0)
    """
    before = None
    for point in points:
        if point.rmse <= target:
            if before is None:
                return Reached(point.seconds, "first")
            share = math.log(before.rmse / target) / math.log(before.rmse / point.rmse)
            return Reached(before.seconds * (point.seconds / before.seconds) ** share, "measured")
        before = point
    last = points[-1]
    return Reached(last.seconds * (last.rmse / target) ** 2, "extrapolated")


def times_to(points, target):
    """Say the same for every seed among the points."""
    seeds = sorted({point.seed for point in points})
    by_seed = ([point for point in points if point.seed == seed] for seed in seeds)
    return [time_to(sorted(some, key=lambda point: point.coalitions), target) for some in by_seed]


def ratio(slower, faster):
    """Divide repetitions of two times: of the medians, and the least and most favourable pair."""
    return Spread(
        slower.median / faster.median,
        slower.lowest / faster.highest,
        slower.highest / faster.lowest,
    )


def start_and_step(costs, seconds):
    """Fit ``seconds = start + step * cost`` by least squares of the relative errors."""
    costs, seconds = np.asarray(costs, float), np.asarray(seconds, float)
    step, start = np.polyfit(costs, seconds, 1, w=1 / seconds)
    return float(start), float(step)
