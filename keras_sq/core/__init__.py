"""What every room of the package may use: backend, checks, types, commands."""
