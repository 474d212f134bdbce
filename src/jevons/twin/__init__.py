"""What arrives, made up or replayed."""
