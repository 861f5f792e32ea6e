"""Images that wait: the newest or a queue, jumps in time passed on, since when a camera waits."""

from ausm_ros.mailbox import QUEUE, Mailbox, Pending


def test_mailbox_keeps_the_newest_and_hands_a_jump_on() -> None:
    box = Mailbox(1)
    assert box.put(Pending("a", 1, 0.0, jump=True)) == 0
    assert box.put(Pending("b", 2, 0.0)) == 1
    taken = box.take()
    assert taken is not None and taken.message == "b" and taken.jump
    assert box.take() is None
    queue = Mailbox(QUEUE)
    assert sum(queue.put(Pending(k, k, 0.0)) for k in range(QUEUE + 3)) == 3
    first = queue.take()
    assert first is not None and first.message == 3


def test_a_camera_waits_since_its_first_image_whatever_replaces_it() -> None:
    box = Mailbox(1)
    assert box.since() is None
    for received in (1.0, 2.0, 3.0):
        box.put(Pending(received, 1, received))
        assert box.since() == 1.0
    taken = box.take()
    assert taken is not None and taken.message == 3.0 and box.since() is None
    queue = Mailbox(QUEUE)
    for received in (4.0, 5.0):
        queue.put(Pending(received, 1, received))
    queue.take()
    assert queue.since() == 5.0
    queue.clear()
    assert queue.since() is None
