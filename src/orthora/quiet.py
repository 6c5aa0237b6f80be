"""Silence for programs; a library leaves other libraries' loggers alone."""


def quiet_libraries(*, data: bool = True) -> None:
    """Keep other libraries' progress bars and notices out of our output; errors are raised.

    Args:
        data: whether data sets will be loaded; their library takes half a second to import.
    """
    import logging
    import warnings

    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if data:
        import datasets

        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(logging.CRITICAL)  # what it logs as an error it raises too
    logging.getLogger("trl").setLevel(logging.ERROR)
