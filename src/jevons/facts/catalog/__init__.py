"""Figures about the world, as TOML; `config.catalog` reads them."""
