"""Watching a Hub: what to look for, what was found, and who does the work."""
