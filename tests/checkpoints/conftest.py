"""What every family's tests share: the libraries that write the checkpoints, quiet and offline."""

from __future__ import annotations

import os
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

with warnings.catch_warnings():  # warnings are errors in these tests, and the libraries' own are not ours to mend
    warnings.simplefilter("ignore")
    import diffusers
    import transformers

transformers.utils.logging.disable_progress_bar()
diffusers.utils.logging.disable_progress_bar()
