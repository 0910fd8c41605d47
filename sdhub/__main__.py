"""`python -m sdhub`."""

from sdhub.cli import main

if __name__ == "__main__":
    main()
