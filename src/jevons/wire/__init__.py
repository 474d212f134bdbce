"""Bytes between processes: KV events over ZMQ, frames between front and workers, HTTP."""
