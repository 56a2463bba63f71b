"""What hears, speaks and plays: kinds `audio.*`, and the texts of speech and of Whisper."""
