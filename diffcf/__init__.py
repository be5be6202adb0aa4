"""Counterfactual explanation of image classifiers, medical CT first."""

__version__ = "0.1.0"
