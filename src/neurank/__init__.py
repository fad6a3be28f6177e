"""Which units of a trained PyTorch network matter, and the smallest network that keeps them."""

__version__ = "0.1.0"
