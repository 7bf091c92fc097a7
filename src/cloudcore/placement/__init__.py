"""See the package's documentation."""
