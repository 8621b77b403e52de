"""How much is guessed: what is likely for its time, by what was measured, and nothing that does not pay."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_rt.runtime.draft_length import FORGOTTEN, RECENT, WORTH, DraftLength, Guess, StepCosts

SURE, UNSURE = 0.9, 0.3


def likely(*confidences, contexts=2):
    return iter([Guess(1, confidence, contexts) for confidence in confidences])


def measured(cost, sizes=(1, 2, 4, 8)):
    """Times of steps of these sizes are known."""
    costs = StepCosts()
    for size in sizes:
        for _ in range(3):
            costs.took(size, cost(size))
    return costs


def lengths(cost, right, steps=40, most=7, confidence=0.7):
    """The sizes of steps when one of ``size`` tokens takes ``cost(size)`` and guesses are right or not."""
    costs = StepCosts()
    length, sizes = DraftLength(most, costs), []
    for _ in range(steps):
        thought, size = length.choose(likely(*[confidence] * most), most)
        sizes.append(size)
        costs.took(size, cost(size))
        for guess in thought[: size if right else 1]:
            length.saw(guess, right)
    return sizes


def test_long_steps_that_cost_little_are_taken_when_guesses_are_right():
    assert lengths(lambda size: 1.0 + 0.04 * (size - 1), right=True)[-10:] == [8] * 10


def test_guesses_that_are_wrong_end_the_guessing():
    sizes = lengths(lambda size: 1.0 + 0.1 * (size - 1), right=False)
    assert sizes[-20:] == [1] * 20
    assert sum(size > 1 for size in sizes) <= 10


def test_steps_that_cost_what_their_tokens_would_are_not_taken():
    sizes = lengths(lambda size: size, right=True)
    assert sizes[-20:] == [1] * 20
    assert sum(sizes) < len(sizes) + 5  # nor were the longest tried


def test_the_size_with_the_most_tokens_for_its_time_is_taken():
    cost = {1: 1.0, 2: 1.1, 4: 1.3, 8: 6.0}
    assert lengths(cost.get, right=True)[-10:].count(4) >= 9


def test_nothing_is_guessed_before_the_time_of_a_plain_step_is_known():
    assert lengths(lambda size: 1.0, right=True)[:2] == [1, 1]


def test_what_other_answers_measured_is_used_from_the_first_step():
    costs = measured(lambda size: 1.0 + 0.04 * (size - 1))
    assert DraftLength(7, costs).choose(likely(*[SURE] * 7), 7)[1] == 8


def test_a_step_ends_before_what_is_not_worth_its_time():
    costs = measured(lambda size: 1.0 + 0.2 * (size - 1))
    length = DraftLength(7, costs)
    assert length.choose(likely(SURE, UNSURE, UNSURE, UNSURE), 7)[1] == 2
    assert length.choose(likely(SURE, SURE, SURE, UNSURE), 7)[1] == 4
    assert length.choose(likely(0.2, SURE, SURE), 7)[1] == 1


def test_what_cannot_be_reached_is_not_thought_of():
    thought, size = DraftLength(7, measured(lambda size: 1.0)).choose(likely(0.1, 0.1, SURE, SURE), 7)
    assert len(thought) == 2
    assert size == 2


def test_no_more_than_there_is_room_for_is_guessed():
    length = DraftLength(7, measured(lambda size: 1.0))
    for room, size in ((0, 1), (1, 2), (2, 2), (3, 4), (6, 4), (7, 8)):
        thought, chosen = length.choose(likely(*[SURE] * 9), room)
        assert (len(thought), chosen) == (room, size)


def test_no_guess_is_a_step_of_one_token():
    assert DraftLength(7, measured(lambda size: 1.0)).choose(likely(), 7) == ([], 1)


def test_guesses_of_as_many_contexts_are_judged_together():
    length = DraftLength(7, measured(lambda size: 1.0 + 0.2 * (size - 1)))
    for _ in range(20):
        length.saw(Guess(1, 0.5, 1), False)
        length.saw(Guess(1, 0.5, 4), True)
    assert length.choose(likely(0.5, 0.5, 0.5, contexts=1), 7)[1] == 1
    assert length.choose(likely(0.5, 0.5, 0.5, contexts=4), 7)[1] == 4


def test_guessing_begins_again_when_guesses_would_have_been_right():
    length = DraftLength(7, measured(lambda size: 1.0 + 0.1 * (size - 1)))
    for _ in range(40):
        length.saw(Guess(1, 0.7, 2), False)
    assert length.choose(likely(0.7), 7)[1] == 1
    for _ in range(10):
        length.saw(Guess(1, 0.7, 2), True)
    assert length.choose(likely(0.7), 7)[1] == 2


@given(
    confidences=st.lists(st.floats(0.01, 1.0), max_size=9), seen=st.lists(st.booleans(), max_size=30),
    ratios=st.lists(st.floats(0.5, 9.0), min_size=3, max_size=3), most=st.integers(0, 31),
)
def test_whatever_was_seen_a_step_is_of_a_known_size_and_of_guesses_that_are_there(confidences, seen, ratios, most):
    length = DraftLength(most, measured(dict(zip((1, 2, 4, 8), (1.0, *ratios), strict=True)).get))
    for right in seen:
        length.saw(Guess(1, 0.5, 2), right)
    thought, size = length.choose(likely(*confidences), most)
    assert size in length.sizes
    assert size <= 1 + len(thought) <= 1 + min(most, len(confidences))


# What steps take


def test_a_step_takes_its_time_beside_plain_steps_of_the_same_moment():
    costs = StepCosts()
    for plain in (1.0, 3.0):  # the machine, or a longer context
        for _ in range(RECENT):
            costs.took(1, plain)
        for _ in range(2):
            costs.took(2, 1.2 * plain)
    assert costs.cost(1) == 1.0
    assert costs.cost(2) == pytest.approx(1.2)


def test_a_step_that_was_once_disturbed_is_not_taken_for_slow():
    costs = measured(lambda size: 1.0 + 0.1 * (size - 1), sizes=(1, 2))
    costs.took(2, 50.0)
    assert costs.cost(2) == pytest.approx(1.1)


def test_what_was_not_measured_goes_on_from_what_was():
    costs = measured(lambda size: 1.0 + 0.3 * (size - 1), sizes=(1, 2))
    assert costs.cost(4) == pytest.approx(1.9)
    assert not costs.known(4)


def test_a_size_that_was_slow_is_tried_again_much_later():
    costs = measured(lambda size: float(size), sizes=(1, 2))
    length = DraftLength(1, costs)
    assert length.choose(likely(SURE), 1)[1] == 1
    for _ in range(FORGOTTEN + 1):
        costs.took(1, 1.0)
    assert length.choose(likely(SURE), 1)[1] == 2


def test_guesses_that_gain_less_than_the_estimates_may_be_wrong_by_are_not_made():
    costs = measured(lambda size: 1.0)
    assert DraftLength(1, costs).choose(likely(WORTH - 1 - 0.01), 1)[1] == 1
    assert DraftLength(1, costs).choose(likely(WORTH - 1 + 0.01), 1)[1] == 2
