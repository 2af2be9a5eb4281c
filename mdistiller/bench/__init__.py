"""How fast a step is, side by side with a plain path."""
