"""Names, units, errors, clocks: what every room may use."""
