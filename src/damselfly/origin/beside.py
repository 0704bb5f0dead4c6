"""The manifest that `damselfly push` leaves beside the files."""

from damselfly.errors import ManifestError, UnsupportedFormatError
from damselfly.model.manifest import Manifest


def manifest_from(data: bytes, place: str) -> Manifest:
    """Read the manifest that was found at `place`.

    Raises:
        ManifestError, UnsupportedFormatError: as `Manifest.parse`, and where it lies.
    """
    try:
        return Manifest.parse(data)
    except ManifestError as exc:
        raise ManifestError(f"reading {place}") from exc
    except UnsupportedFormatError as exc:
        raise UnsupportedFormatError(f"reading {place}") from exc
