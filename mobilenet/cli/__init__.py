"""Command lines: one thin module a verb, each with `main(argv)`."""
