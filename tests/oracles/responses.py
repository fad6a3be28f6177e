"""Responses class by class and example by example, with hooks on the user's modules."""

import torch
from tests.oracles.vital_signs import shown


def accumulated(model, places, batches, classes, which):
    """Equation 3 by loops: (classes, units) sums, and (classes,) counts of examples.

    `places` says by hand which modules compute the units ("given") and which read them ("read").
    """
    ats = places.given if which == "given" else places.read
    sums = torch.zeros(classes, places.width, dtype=torch.float64)
    counts = [0] * classes
    for (_, targets), examples in zip(batches, shown(model, places, batches), strict=True):
        for label, example in zip(targets.tolist(), examples, strict=True):
            counts[label] += 1
            for at, values in zip(ats, getattr(example, which), strict=True):
                for entry, unit in enumerate(at.units):
                    if unit >= 0:
                        sums[label, unit] += values[entry].double().sum()
    return sums, counts


def places_of(places, example, which):
    """How many numbers of one example belong to each unit."""
    ats = places.given if which == "given" else places.read
    numbers = [0] * places.width
    for at, values in zip(ats, getattr(example, which), strict=True):
        for entry, unit in enumerate(at.units):
            if unit >= 0:
                numbers[unit] += values[entry].numel()
    return numbers
