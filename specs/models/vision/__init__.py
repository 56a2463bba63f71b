"""[torch] What looks at pictures, and the pixels that it is given."""
