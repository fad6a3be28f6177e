"""Compiled loops over coalitions: one lane per coalition, one thread per example.

Each kernel has a slow twin in plain torch (the generic path of `observe.game`) and in
`tests/oracles`; they agree on every coalition.
"""
