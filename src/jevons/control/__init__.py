"""State machines: facts in, decisions out. No I/O; the time is an argument."""
