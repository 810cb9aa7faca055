"""A local network of finode daemons."""
