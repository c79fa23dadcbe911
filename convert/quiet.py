"""Suppression of the libraries' messages, which are meant for their developers."""

import logging
import warnings


def quiet_libraries() -> None:
    """Silence deprecation warnings of torch, notes of its tracer, and transformers' and optimum's logs and progress."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for library in ("nncf", "optimum", "torch", "torch.utils.cpp_extension"):
        logging.getLogger(library).setLevel(logging.ERROR)
