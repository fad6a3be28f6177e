"""What can be switched off: the traced forward pass, its layers of units, and where it splits."""
