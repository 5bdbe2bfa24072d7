"""How it is trained: schedules, links, workers, the gather and the fine-tuning, checkpoints."""
