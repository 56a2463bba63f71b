"""Latent diffusion: kinds `diffusion.*`."""
