"""The builders of the tests beside and above are importable."""
