"""Names of the classes of each head, in the order of its logits."""

_COCO = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv,
laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase,
scissors, teddy bear, hair drier, toothbrush
"""
_SIM = "object, block, ball, can, bottle, bowl, mug, toy, chair, vehicle, figure, animal, robot"

CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "coco": tuple(" ".join(name.split()) for name in _COCO.split(",")),
    "sim": tuple(_SIM.split(", ")),
}
