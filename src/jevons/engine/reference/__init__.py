"""The embedded engine: paged PyTorch, one process per worker, real blocks that can be named, moved and checked."""
