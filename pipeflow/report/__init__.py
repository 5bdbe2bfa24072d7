"""Tables and figures of runs that have been made."""
