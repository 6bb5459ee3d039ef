"""The unit of every memory figure that the package writes or takes."""

GB = 1e9
"""Bytes in a gigabyte, 10^9: not 2^30, which is a GiB."""
