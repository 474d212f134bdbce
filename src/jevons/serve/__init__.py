"""The live system: the door, the front, the workers' processes."""
