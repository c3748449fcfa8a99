"""The only train loop and its parts. They receive model, data and losses and import neither."""
