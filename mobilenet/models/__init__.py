"""Networks and their building blocks. This package does not import data or training code."""
