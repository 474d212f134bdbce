"""Decisions as pure functions of a snapshot."""
