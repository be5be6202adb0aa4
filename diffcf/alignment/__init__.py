"""Classifiers that decide for the experts' reasons: losses that keep a counterfactual change inside their region."""
