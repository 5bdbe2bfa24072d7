"""What one does with a trained flow: its likelihood, samples of it."""
