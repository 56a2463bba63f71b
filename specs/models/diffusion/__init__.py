"""[torch] Latent diffusion: autoencoders and denoisers."""
