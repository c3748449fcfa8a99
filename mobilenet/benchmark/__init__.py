"""Measures the speed of the project's steps, next to plain Flax and PyTorch, on the same shapes."""
