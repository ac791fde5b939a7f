"""Commands beside those of Lightning."""
