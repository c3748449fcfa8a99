"""From run directories to rows, and from rows to tables. Nothing here trains."""
