"""[torch] What hears, speaks and plays: encoders of sound, codecs, vocoders."""
