"""Text to a checked, typed, frozen Config, with the place of every error."""
