"""Silence for programs; a library leaves other libraries' loggers alone."""


def quiet_libraries() -> None:
    """Keep other libraries' progress bars and notices out of our output; errors still show."""
    import logging
    import warnings

    import datasets
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("trl").setLevel(logging.ERROR)
