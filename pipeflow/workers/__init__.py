"""Who trains, on which machine, and whether they are alive; nothing here knows of flows."""
