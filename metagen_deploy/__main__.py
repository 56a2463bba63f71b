"""`python -m metagen_deploy`: the command line where the script is not on the path."""

from metagen_deploy.cli import main

if __name__ == "__main__":
    main()
