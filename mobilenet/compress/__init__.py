"""Smaller networks: pruning, shrinking, distillation."""
