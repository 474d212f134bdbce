"""Stores: where blocks outlive the device that computed them. Only this room knows files and shared memory."""
