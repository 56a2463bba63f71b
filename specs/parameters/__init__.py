"""[torch] Parameters of a model: where they come from, and how they get into its modules."""
