"""Money: what a fleet costs, and what that hangs on. Plain numbers or arrays of draws alike."""
