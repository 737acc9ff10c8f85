"""Training: schedules, optimizer, loop, checkpoints, metrics. It knows no text and no model class."""
