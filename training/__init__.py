"""Training of AUSM: data, augmentation, losses, stages and the loop; `ausm train` and `ausm simulate` are its commands."""

import ausm  # noqa: F401  (says how threads wait, which must come before PyTorch is loaded)
