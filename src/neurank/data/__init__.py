"""Labelled data: what neurank can load, and the form that it loads it in."""

from neurank.data.sources import KNOWN, load
from neurank.data.splits import Split, Splits

__all__ = ["KNOWN", "Split", "Splits", "load"]
