"""What a user types and sees: the texts of options, tables, progress, Ctrl-C."""
