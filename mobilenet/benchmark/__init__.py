"""How fast the project's steps are beside plain Flax and PyTorch, on the same shapes in one run."""
