"""One class at a time: what units answer to it, which it needs, and a network for it alone."""
