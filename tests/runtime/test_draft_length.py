"""Number of guessed tokens: by a table of costs and by how this answer's guesses went, and none where guessing does
not pay."""

from hypothesis import given
from hypothesis import strategies as st

from flamingo_rt.runtime.speculation import MIN_GAIN, DraftLength, Guess
from flamingo_rt.step_costs import StepCosts

SURE, UNSURE = 0.9, 0.3


def likely(*confidences, contexts=2):
    return iter([Guess(1, confidence, contexts) for confidence in confidences])


def table(cost, sizes=(2, 4, 8)):
    """Costs of steps of these sizes."""
    return StepCosts(tuple((size, cost(size)) for size in sizes))


def lengths(cost, right, steps=40, most=7, confidence=0.7):
    """The sizes of an answer's steps when one of ``size`` tokens costs ``cost(size)`` and guesses are right or not."""
    length, sizes = DraftLength(most, table(cost)), []
    for _ in range(steps):
        considered, size = length.choose(likely(*[confidence] * most), most)
        sizes.append(size)
        for guess in considered[: size if right else 1]:
            length.saw(guess, right)
    return sizes


def test_long_steps_that_cost_little_are_taken_when_guesses_are_right():
    assert lengths(lambda size: 1.0 + 0.04 * (size - 1), right=True)[-10:] == [8] * 10


def test_guesses_that_are_wrong_end_the_guessing():
    sizes = lengths(lambda size: 1.0 + 0.1 * (size - 1), right=False)
    assert sizes[-20:] == [1] * 20
    assert sum(size > 1 for size in sizes) <= 12


def test_steps_that_cost_what_their_tokens_would_are_not_taken():
    assert lengths(float, right=True) == [1] * 40


def test_the_size_with_the_most_tokens_for_its_cost_is_taken():
    cost = {2: 1.1, 4: 1.3, 8: 6.0}
    assert lengths(cost.get, right=True)[-10:].count(4) >= 9


def test_likely_tokens_are_guessed_from_the_first_step_on():
    length = DraftLength(7, table(lambda size: 1.0 + 0.04 * (size - 1)))
    assert length.choose(likely(*[SURE] * 7), 7)[1] == 8


def test_a_new_answer_knows_nothing_of_those_before():
    costs = table(lambda size: 1.0 + 0.1 * (size - 1))
    before = DraftLength(7, costs).choose(likely(0.7, 0.7), 7)
    for _ in range(2):
        length = DraftLength(7, costs)
        assert length.choose(likely(0.7, 0.7), 7) == before
        for _ in range(40):
            length.saw(Guess(1, 0.7, 2), False)
        assert length.choose(likely(0.7, 0.7), 7)[1] == 1


def test_a_step_ends_before_a_guess_that_is_not_worth_its_cost():
    costs = table(lambda size: 1.0 + 0.2 * (size - 1))
    length = DraftLength(7, costs)
    assert length.choose(likely(SURE, UNSURE, UNSURE, UNSURE), 7)[1] == 2
    assert length.choose(likely(SURE, SURE, SURE, UNSURE), 7)[1] == 4
    assert length.choose(likely(0.2, SURE, SURE), 7)[1] == 1


def test_a_guess_behind_an_unlikely_one_is_not_considered():
    considered, size = DraftLength(7, table(lambda size: 1.0)).choose(likely(0.1, 0.1, SURE, SURE), 7)
    assert len(considered) == 2
    assert size == 2


def test_no_more_than_there_is_room_for_is_guessed():
    length = DraftLength(7, table(lambda size: 1.0))
    for room, size in ((0, 1), (1, 2), (2, 2), (3, 4), (6, 4), (7, 8)):
        considered, chosen = length.choose(likely(*[SURE] * 9), room)
        assert (len(considered), chosen) == (room, size)


def test_no_guess_is_a_step_of_one_token():
    assert DraftLength(7, table(lambda size: 1.0)).choose(likely(), 7) == ([], 1)


def test_guesses_of_as_many_contexts_are_judged_together():
    length = DraftLength(7, table(lambda size: 1.0 + 0.2 * (size - 1)))
    for _ in range(20):
        length.saw(Guess(1, 0.5, 1), False)
        length.saw(Guess(1, 0.5, 4), True)
    assert length.choose(likely(0.5, 0.5, 0.5, contexts=1), 7)[1] == 1
    assert length.choose(likely(0.5, 0.5, 0.5, contexts=4), 7)[1] == 4


def test_guessing_begins_again_when_guesses_would_have_been_right():
    length = DraftLength(7, table(lambda size: 1.0 + 0.1 * (size - 1)))
    for _ in range(40):
        length.saw(Guess(1, 0.7, 2), False)
    assert length.choose(likely(0.7), 7)[1] == 1
    for _ in range(10):
        length.saw(Guess(1, 0.7, 2), True)
    assert length.choose(likely(0.7), 7)[1] == 2


@given(
    confidences=st.lists(st.floats(0.01, 1.0), max_size=9), seen=st.lists(st.booleans(), max_size=30),
    ratios=st.lists(st.floats(1.0, 9.0), min_size=3, max_size=3), most=st.integers(0, 31),
)
def test_a_step_always_has_a_known_size_and_no_more_guesses_than_there_are(confidences, seen, ratios, most):
    length = DraftLength(most, table(dict(zip((2, 4, 8), ratios, strict=True)).get))
    for right in seen:
        length.saw(Guess(1, 0.5, 2), right)
    considered, size = length.choose(likely(*confidences), most)
    assert size in length.sizes
    assert size <= 1 + len(considered) <= 1 + min(most, len(confidences))


def test_guesses_that_gain_less_than_the_estimates_may_be_wrong_by_are_not_made():
    costs = table(lambda size: 1.0)
    assert DraftLength(1, costs).choose(likely(MIN_GAIN - 1 - 0.01), 1)[1] == 1
    assert DraftLength(1, costs).choose(likely(MIN_GAIN - 1 + 0.01), 1)[1] == 2
