"""Training of AUSM: data, augmentation, losses, stages and the loop; commands `ausm train` and `ausm simulate`."""

import ausm  # noqa: F401  (says how threads wait, which must come before PyTorch is loaded)
