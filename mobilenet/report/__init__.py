"""Committed results: rows from runs, tables and pages from rows, claims of papers and verdicts."""
