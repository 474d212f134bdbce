"""jevons: an open inference operating system. Serve, rehearse and price, with one set of decisions."""

__version__ = "0.1.0"
