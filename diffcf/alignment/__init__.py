"""Causal alignment: which attributes an expert's label goes by, and models that are held to them (papers 000, 001)."""
