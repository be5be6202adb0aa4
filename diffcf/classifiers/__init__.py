"""Classifiers: foreign black boxes behind one adapter, and the agents that imitate them."""
