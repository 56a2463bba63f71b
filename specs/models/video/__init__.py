"""[torch] What makes and looks at films."""
