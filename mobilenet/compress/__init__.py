"""Smaller networks: pruning, channel shrinking, distillation."""
