"""Frozen records of what is: models, requests, events, targets."""
