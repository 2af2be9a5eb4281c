"""Work that may run beside other work on a GPU."""

import torch


class Branch:
    """A context. While a CUDA graph is recorded, the work inside is a branch of the graph of its own.

    The branch begins at the place where this object was made, and the work between that place and the context is
    another branch; what follows the context waits for both. Without a recording nothing changes.
    """

    def __init__(self, beside: bool = True):
        recorded = beside and torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
        self.begin = torch.cuda.current_stream().record_event() if recorded else None

    def __enter__(self):
        if self.begin is not None:
            stream = torch.cuda.Stream()
            stream.wait_event(self.begin)
            self._inside = torch.cuda.stream(stream)
            self._inside.__enter__()

    def __exit__(self, *error):
        if self.begin is not None:
            stream = torch.cuda.current_stream()
            self._inside.__exit__(*error)
            torch.cuda.current_stream().wait_stream(stream)
