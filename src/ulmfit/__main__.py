"""`python -m ulmfit`."""

from ulmfit.cli import main

if __name__ == "__main__":
    main()
