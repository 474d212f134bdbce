"""How long things take, in seconds: predicted, and learned from what was measured."""
