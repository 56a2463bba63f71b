"""What makes and looks at films: kinds `video.*`."""
