"""What the Hub's cache on this machine holds of a repository; the Hub is not asked."""

from pathlib import Path


def cached_file(repository: str, name: str, revision: str | None = None) -> Path | None:
    """Where a file of a model of the Hub is on this machine, in a folder named after its commit; None where it is not.

    Args:
        repository: the model's Hub id; what cannot be one is in no cache.
        name: of the file.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError

    try:
        found = try_to_load_from_cache(repository, name, revision=revision)
    except HFValidationError:
        return None
    # A file that a repository is known not to have is no path.
    return Path(found) if isinstance(found, str) else None


def cached_folder(repository: str, revision: str | None = None) -> Path | None:
    """Where the files of a model of the Hub are whose configuration has been loaded before; None of others."""
    configuration = cached_file(repository, "config.json", revision)
    return None if configuration is None else configuration.parent
