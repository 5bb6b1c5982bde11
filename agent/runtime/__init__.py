"""The OCI runtime that dockerd calls as `transship`. Standard library only: it starts in milliseconds."""
