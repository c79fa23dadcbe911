"""Keeps what the libraries tell their developers from the people who convert."""

import logging
import warnings


def quiet_libraries() -> None:
    """Silences deprecations inside torch, notes of the tracer, transformers' and optimum's information and progress."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for library in ("nncf", "optimum", "torch", "torch.utils.cpp_extension"):
        logging.getLogger(library).setLevel(logging.ERROR)
