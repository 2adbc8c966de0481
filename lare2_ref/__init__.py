"""LaRE² in plain PyTorch: the reference that the engine is measured against, and the home of training."""

import os


def quieten_libraries() -> None:
    """Switch off the progress bars and advice of diffusers, transformers and the hub; failures are exceptions."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
