"""Quantisation: grids, ranges, quantised networks, and an integer executor as the reference."""
