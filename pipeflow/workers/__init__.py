"""The workers of a run: which there are, on which machines, and whether they are alive; nothing here knows of flows."""
