"""Classify a picture with a bundle: all that an app needs is numpy, onnxruntime (or tensorrt) and this.

python examples/embed.py digits.bundle seven.png
"""

import sys
from pathlib import Path

from metagen_deploy import load
from specs.errors import MetagenError


def main(bundle: str, picture: str) -> None:
    with load(bundle) as session:
        print(session.describe())
        for label, probability in session.pipeline.classify(picture, top_k=3):
            print(f"{label:>12} {probability:6.1%}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: python {Path(__file__).name} BUNDLE PICTURE")
    try:
        main(*sys.argv[1:])
    except MetagenError as error:
        sys.exit(f"error: {error}")
