"""Data only: one TOML a set-up, whose first lines are the command that runs it."""
