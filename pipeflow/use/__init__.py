"""Uses of a trained flow: its likelihood, and samples of it."""
