"""What looks at pictures, and what is done to a picture before: kinds `vision.*`."""
