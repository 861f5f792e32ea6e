"""Every error a user of `ausm` can meet. Messages carry the numbers ("mask 480x640, image 720x1280")."""


class AusmError(ValueError):
    """Base class: the request was refused and nothing was changed."""


class SizeError(AusmError):
    """Two arrays that must have one size have two."""


class EmptyMaskError(AusmError):
    """A prompt mask has no object pixel, or fewer than the configured minimum."""


class CapacityError(AusmError):
    """More objects than ID vectors (N_id), or than the configured capacity."""


class UnknownIdError(AusmError, KeyError):
    """No live object has this id."""

    __str__ = ValueError.__str__  # KeyError would quote the message


class ImageError(AusmError):
    """An image that cannot be decoded: unknown encoding, short buffer, wrong type."""


class InputError(AusmError):
    """A video, folder or bag that is missing, unreadable or holds no image."""


class CheckpointError(AusmError):
    """A checkpoint that is missing, corrupt or of another model."""


class NotFiniteError(AusmError):
    """The model's output holds NaN or infinity. Unlike after the others the stream cannot go on: `Stream.reset`."""
