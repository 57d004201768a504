"""What threadpoolctl calls; importing it needs threadpoolctl."""

from __future__ import annotations

from importlib.metadata import version

from threadpoolctl import LibController


class EngineController(LibController):
    """The engine's threads, found by the file that it is in."""

    user_api = "multihead"
    internal_api = "multihead"
    filename_prefixes = ("libmultihead",)

    def get_num_threads(self) -> int:
        """Return how many threads the engine uses."""
        return int(self.dynlib.multihead_get_num_threads())

    def set_num_threads(self, num_threads: int) -> None:
        """Set how many threads the engine uses."""
        self.dynlib.multihead_set_num_threads(num_threads)

    def get_version(self) -> str:
        """Return the version of the package."""
        return version("multihead")
