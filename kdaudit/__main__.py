"""`python -m kdaudit`: the same as the `kdaudit` command."""

from kdaudit.cli.main import main

if __name__ == "__main__":
    main()
