"""Spaces: demos of published variants, on the Hub or on the embedded one."""
