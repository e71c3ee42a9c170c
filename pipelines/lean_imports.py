"""Imports Beam without the clients of services that the command at hand does not use.

Importing Beam imports the client of every service it can talk to, where they are installed: of its
2.7 s of processor time, pandas takes .7, Google Cloud .8 and MongoDB .1; its `RunInference` takes
2.5 more, for torch and scipy. Beam treats each as a package that may be missing, and does without.
What imports make stays: to look for garbage in it takes a sixth of their time, and a quarter of a
second when the process ends.
"""

from __future__ import annotations

import gc
import importlib
import importlib.abc
import sys
import types
from collections.abc import Sequence

_SPARED = frozenset(
    {
        "apache_beam.io.gcp",  # `semid_transforms.files` imports it for a gs:// path
        "bson",
        "google.cloud.dataflow",
        "pandas",
    }
)

_MODEL_MANAGER = "apache_beam.ml.inference.model_manager"


class _Spared(importlib.abc.MetaPathFinder):
    """Answers that a package is not installed."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        """Refuses a spared package; other finders look for the rest.

        Raises:
          ModuleNotFoundError: as where the package is not installed.
        """
        if name in _SPARED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def import_lean(beam_arguments: Sequence[str]) -> None:
    """Imports Beam for a command that runs its pipelines, if any, in this process.

    Nothing happens where Beam is imported already, or another runner may be asked for. A package
    that is spared can be imported later; only pyarrow and Beam go on without pandas.

    Args:
      beam_arguments: options of Beam as on the command line.
    """
    options = [argument for argument in beam_arguments if argument.startswith("-")]
    in_process = all(option.startswith("--direct_") for option in options)
    if "apache_beam" in sys.modules or not in_process:
        return
    finder = _Spared()
    sys.meta_path.insert(0, finder)
    collects = gc.isenabled()
    gc.disable()
    # It serves several models that share a GPU. Without it Beam would not measure memory either, so
    # it is there, but empty.
    sys.modules[_MODEL_MANAGER] = stand_in = types.ModuleType(_MODEL_MANAGER)
    stand_in.ModelManager = None  # type: ignore[attr-defined]
    try:
        importlib.import_module("apache_beam.ml.inference.base")
        # Looks for pandas when it makes its first array of Python values, and never again.
        importlib.import_module("pyarrow").array([0])
    finally:
        sys.meta_path.remove(finder)
        del sys.modules[_MODEL_MANAGER]
        gc.freeze()
        if collects:
            gc.enable()
