"""Beside a training: units that die, are attacked, removed on a schedule, or brought back."""
