"""Text to what a graph takes, and ids back to text: of pieces, of characters, in a window of fixed length."""
