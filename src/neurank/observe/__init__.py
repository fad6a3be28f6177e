"""The only code that runs a model in order to score it."""
