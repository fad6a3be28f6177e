"""Imported before anything is collected."""

# Left to itself, pytest imports the rooms one by one and puts each in the place of the function of
# the same name: neurank.watch, neurank.condense.
import neurank  # noqa: F401
