"""Classify a picture with a bundle: all that an app needs is numpy, onnxruntime (or tensorrt) and this.

python examples/embed.py digits.bundle seven.png
"""

import sys

from metagen_deploy import load


def main(bundle: str, picture: str) -> None:
    with load(bundle) as session:
        print(session.describe())
        for label, probability in session.pipeline.classify(picture, top_k=3):
            print(f"{label:>12} {probability:6.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
