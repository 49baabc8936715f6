"""The Gymnasium layer: actions in, observations out, over any `World`. Importing this package imports no torch."""
