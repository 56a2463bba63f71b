"""What the handlers of several families use: modules of parts, and what a host is told of them."""
