"""What a fit needs of Lightning: masks held, several steps at once, saving, and coming back to where it stood."""
