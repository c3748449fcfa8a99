"""The one train loop and its parts. They receive model, data and losses; they import neither."""
