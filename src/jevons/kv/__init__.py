"""Which blocks: their names, who holds them, and the pool a worker keeps them in."""
