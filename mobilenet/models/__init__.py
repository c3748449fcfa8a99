"""Networks and their building blocks; nothing here knows of data or training."""
