"""The classes of simulated things: what class id k means in clips and bags of `ausm simulate` (head name "sim")."""

SIM_HEAD = "sim"

# "object" is any shape without an everyday name (the 1,000 random meshes of pybullet_data).
SIM_CLASSES: tuple[str, ...] = (
    "object",
    "block",
    "ball",
    "can",
    "bottle",
    "bowl",
    "mug",
    "toy",
    "chair",
    "vehicle",
    "figure",
    "animal",
    "robot",
)

SIM_CLASS_ID: dict[str, int] = {name: k for k, name in enumerate(SIM_CLASSES)}
