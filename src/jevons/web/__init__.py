"""Pages: a fleet as it is now, live or rehearsed, for people; every one of them also as JSON."""
