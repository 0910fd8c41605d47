"""Bytes in words."""

MIB, GIB = 2**20, 2**30
