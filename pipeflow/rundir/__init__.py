"""The folder of a run: its files, written by the run and read back, typed."""
