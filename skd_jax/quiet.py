"""Standard error without the chatter of libraries' C++."""

import contextlib
import os
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def standard_error() -> Iterator[None]:
    """Holds back what the process writes to standard error, C++ included; shows it if the block fails.

    For importing TensorFlow: some of what it then says obeys no TF_CPP_MIN_LOG_LEVEL.
    """
    with tempfile.TemporaryFile() as held:
        saved = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)
