"""What the operating system gives and refuses: disks, mapped pages, processes, sessions over mapped files."""
