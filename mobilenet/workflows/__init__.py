"""What the verbs do to runs, as plain functions that notebooks call too."""
