"""A trained flow as one uses it: likelihoods, latents, samples and interpolations."""
