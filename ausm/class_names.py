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
# YouTube-VIS: the names of its categories in the order of their ids, with spaces
_YTVIS19 = """
person, giant panda, lizard, parrot, skateboard, sedan, ape, dog, snake, monkey, hand, rabbit, duck, cat, cow, fish,
train, horse, turtle, bear, motorbike, giraffe, leopard, fox, deer, owl, surfboard, airplane, truck, zebra, tiger,
elephant, snowboard, boat, shark, mouse, frog, eagle, earless seal, tennis racket
"""
_YTVIS21 = """
airplane, bear, bird, boat, car, cat, cow, deer, dog, duck, earless seal, elephant, fish, flying disc, fox, frog,
giant panda, giraffe, horse, leopard, lizard, monkey, motorbike, mouse, parrot, person, rabbit, shark, skateboard,
snake, snowboard, squirrel, surfboard, tennis racket, tiger, train, truck, turtle, whale, zebra
"""
_SIM = "object, block, ball, can, bottle, bowl, mug, toy, chair, vehicle, figure, animal, robot"


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in text.split(","))


CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "coco": _names(_COCO),
    "ytvis19": _names(_YTVIS19),
    "ytvis21": _names(_YTVIS21),
    "sim": _names(_SIM),
}
