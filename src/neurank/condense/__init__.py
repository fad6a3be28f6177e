"""From a ranking to a smaller network: plan, compensate, cut, verify, retrain, save."""
