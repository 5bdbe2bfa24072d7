"""Many runs from one file: `pipeflow sweep`."""
