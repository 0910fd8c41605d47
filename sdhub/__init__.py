"""sdhub."""
