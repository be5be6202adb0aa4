"""Generators: the diffusion autoencoder, its samplers, and how it is used slice by slice."""
