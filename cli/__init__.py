"""The finode command."""
